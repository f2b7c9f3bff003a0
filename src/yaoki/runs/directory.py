"""A run's directory: its paths and its small files.

run.json               id of the run, written once
config.json            the resolved config
attempts.jsonl         a line when an attempt starts, a line when it ends by itself
model/                 architecture and tokenizer, so that a resume does without the original model
metrics.jsonl          a row per step        tensorboard/   the same for TensorBoard
checkpoints/           committed checkpoints
rollouts/              the journal: what was sampled, by step
quarantine/            segments of it that cannot be used, with the reason
start.json             digests of the state at step 0
saved.json             says that a checkpoint was committed, from the first one on
summary.json           accuracy before and after, written when train.steps is reached
logs/                  output of the ranks other than 0
lock                   held by the process that trains
"""

import contextlib
import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from yaoki import fs
from yaoki.checkpoint.catalog import Catalog, Choice, Refusal
from yaoki.checkpoint.layout import Kind
from yaoki.config.load import read_stored
from yaoki.config.schema import Config
from yaoki.errors import CorruptCheckpointError, NothingThereError, RefusedError
from yaoki.runs.lineage import Parent
from yaoki.runs.lock import RunLock, holder_of, in_use
from yaoki.runs.records import (
    FORMAT_VERSION,
    AttemptEnd,
    AttemptRecord,
    AttemptStart,
    Record,
    RunSummary,
    StartRecord,
)

_RUN, _ATTEMPTS, _SUMMARY = "run.json", "attempts.jsonl", "summary.json"
_START, _SAVED = "start.json", "saved.json"

_Record = TypeVar("_Record", bound=Record)


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """Paths and small files of one run."""

    path: Path

    @property
    def config_path(self) -> Path:
        return self.path / "config.json"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def rollouts(self) -> Path:
        return self.path / "rollouts"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def logs(self) -> Path:
        """Output of the ranks other than 0."""
        return self.path / "logs"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def restoring(self) -> Path:
        """Scratch directory of a replay."""
        return self.path / ".restoring"

    def remove_leftovers(self) -> None:
        """Remove the unfinished files of dead attempts."""
        for pattern in ("*.json.tmp", "checkpoints/*.json.tmp", "attempts/*/*.tmp"):
            for unfinished in self.path.glob(pattern):
                fs.remove_file(unfinished)
        if self.restoring.exists():
            fs.remove_tree(self.restoring)

    def superseded_path(self, attempt: int) -> Path:
        """Where an attempt keeps the metrics rows that it cut off."""
        return self._attempt_directory(attempt) / "superseded.jsonl"

    @property
    def exists(self) -> bool:
        """True once a run was started here."""
        return (self.path / _RUN).is_file()

    @property
    def run_id(self) -> str:
        """The run's id."""
        run_id = self._facts().get("run_id")
        if not isinstance(run_id, str):
            raise CorruptCheckpointError(f"{self.path / _RUN} holds no run_id", hint="put it back as it was")
        return run_id

    def require_run(self) -> None:
        """NothingThereError unless there is a run here; CorruptCheckpointError if there was one; RefusedError
        if its format version is another one."""
        self._require_not_without_name()
        if not self.exists:
            raise NothingThereError(
                f"there is no run in {self.path}",
                hint="start one: yaoki train RECIPE --run " + str(self.path),
            )
        self._facts()

    @property
    def parent(self) -> Parent | None:
        """What this run was forked from, if it was."""
        found = self._facts().get("parent")
        return None if found is None else Parent.from_json(found)

    def create(self, config: Config, *, name: str | None = None, parent: Parent | None = None) -> None:
        """Create the run; run.json is written last and makes it one. `name` is the beginning of the run's
        id."""
        self._require_own()
        fs.make_directory(self.path)
        self.store_config(config)
        base = (name or self.path.name).encode("utf-8", "replace").decode()  # a file name may be no Unicode
        run_id = f"{base}-{secrets.token_hex(4)}"
        facts = {"run_id": run_id, "created_unix_s": time.time(), "format_version": FORMAT_VERSION}
        _write_json(self.path / _RUN, facts | ({} if parent is None else {"parent": asdict(parent)}))

    def stored_config(self) -> Config:
        """The config of the newest attempt. RefusedError for a run of another format version."""
        self._facts()
        return read_stored(self.config_path)

    @property
    def has_begun(self) -> bool:
        """Whether anything was trained or sampled; False if every attempt ended before that."""
        return (
            (self.path / _START).exists() or (self.path / _SAVED).exists() or any(self.checkpoints.glob("*"))
        )

    def begin_anew(self, config: Config) -> None:
        """Replace the config of a run that has not begun. RefusedError for one of another format version."""
        self._facts()
        if self.model.exists():
            fs.remove_tree(self.model)
        self.store_config(config)

    def store_config(self, config: Config) -> None:
        """Replace the stored config, whole or not at all."""
        _write_json(self.config_path, config.model_dump(mode="json"))

    def choose_checkpoint(self, *, read_all: bool = True, refused: Sequence[Refusal] = ()) -> Choice:
        """The checkpoint to go on from; none in it only where none was ever committed.

        With `read_all` False only manifests and sizes are looked at; `refused` are passed over.
        CorruptCheckpointError where there should be one: all are damaged, or they are gone.
        """
        was_saved = (self.path / _SAVED).exists()
        return Catalog(self.checkpoints).choose(read_all=read_all, refused=refused, was_saved=was_saved)

    def mark_saved(self) -> None:
        """Remember for good that a checkpoint was committed: from now on a fresh start would be a loss."""
        if not (self.path / _SAVED).exists():
            _write_json(self.path / _SAVED, {"first_saved_unix_s": time.time()})

    def recorded_start(self) -> StartRecord | None:
        """What the first attempt found at step 0."""
        return _read_record(self.path / _START, StartRecord) if (self.path / _START).is_file() else None

    def record_start(self, start: StartRecord) -> None:
        _write_json(self.path / _START, start.model_dump())

    def attempts(self) -> list[AttemptRecord]:
        """One entry per attempt, oldest first; `outcome` is `killed` where no end was written."""
        entries: list[AttemptRecord] = []
        try:
            for line in _lines(self.path / _ATTEMPTS):
                if "outcome" in line:
                    end = AttemptEnd.model_validate(line)
                    entries[-1] = entries[-1].model_copy(update=end.model_dump())
                else:
                    entries.append(AttemptRecord.model_validate(line))
        except (ValidationError, IndexError) as error:
            reason = f"a line is not an attempt's: {error}"
            raise CorruptCheckpointError(
                f"{self.path / _ATTEMPTS}: {reason}", hint="put it back as it was"
            ) from error
        return entries

    def log_attempt(self, line: AttemptStart | AttemptEnd) -> None:
        """Append the current attempt's start or end."""
        file = fs.open_at_end(self.path / _ATTEMPTS)
        with contextlib.closing(file):
            file.cut(
                (self.path / _ATTEMPTS).read_bytes().rfind(b"\n") + 1
            )  # a torn line would swallow this one
            file.write(json.dumps(line.model_dump(exclude_none=True)).encode() + b"\n")
            file.sync()

    def write_summary(self, summary: RunSummary) -> None:
        _write_json(self.path / _SUMMARY, summary.model_dump())

    def summary(self) -> RunSummary | None:
        """The end of the run, once it has reached train.steps."""
        return _read_record(self.path / _SUMMARY, RunSummary) if (self.path / _SUMMARY).is_file() else None

    def final_accuracy(self) -> tuple[int, float] | None:
        """The last step with its held-out accuracy, once the run has reached train.steps."""
        summary = self.summary()
        if summary is None or summary.accuracy_after is None:
            return None
        return summary.steps, summary.accuracy_after

    def lock(self) -> RunLock:
        """Keeps a second process out. RefusedError for a directory with other content: nothing is put
        there."""
        self._require_own()
        return RunLock(self.path / "lock")

    def lock_holder(self) -> str | None:
        """The process that trains here now, in words, or None."""
        return holder_of(self.path / "lock")

    def require_free(self) -> None:
        """RefusedError if a process trains here now, before anything is started; see `lock`."""
        if (holder := self.lock_holder()) is not None:
            raise in_use(self.path, holder)

    def _facts(self) -> dict[str, Any]:
        """Content of run.json. RefusedError for a run of another format version."""
        found = _read_json(self.path / _RUN)
        version = found.get("format_version")
        if version != FORMAT_VERSION:
            raise RefusedError(
                f"{self.path} holds a run of format version {version}, this is version {FORMAT_VERSION}",
                hint="finish it with the version of Yaoki that wrote it, or start a new run with --run",
            )
        return found

    def _require_own(self) -> None:
        """RefusedError unless there is a run here, the beginning of one, or nothing."""
        self._require_not_without_name()
        if self.exists or not self.path.is_dir():
            return
        found = sorted(child.name for child in self.path.iterdir())
        if not set(found) <= {"lock", "logs", "model", "config.json", "config.json.tmp", "run.json.tmp"}:
            raise RefusedError(
                f"{self.path} is not empty and holds no run: {', '.join(found[:5])}",
                hint="name another directory with --run, or empty this one",
            )

    def _require_not_without_name(self) -> None:
        """CorruptCheckpointError if there are checkpoints but not what makes this a run."""
        if self.exists or not self.checkpoints.is_dir():
            return
        if any(found.kind is not Kind.UNFINISHED for found in Catalog(self.checkpoints).candidates()):
            raise CorruptCheckpointError(
                f"{self.path / _RUN} is missing, and there are checkpoints beside it",
                hint="put it back from a copy: it says which run they belong to",
            )

    def _attempt_directory(self, attempt: int) -> Path:
        return self.path / "attempts" / f"{attempt:04d}"


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    fs.publish(path, (json.dumps(dict(value), indent=2) + "\n").encode())


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise CorruptCheckpointError(f"{path} is missing", hint="put it back as it was") from error
    except ValueError as error:
        raise CorruptCheckpointError(f"{path} is not JSON: {error}", hint="put it back as it was") from error
    if not isinstance(value, dict):
        raise CorruptCheckpointError(f"{path} is no JSON object", hint="put it back as it was")
    return value


def _read_record(path: Path, kind: type[_Record]) -> _Record:
    try:
        return kind.model_validate(_read_json(path))
    except ValidationError as error:
        raise CorruptCheckpointError(f"{path}: {error}", hint="put it back as it was") from error


def _lines(path: Path) -> list[dict[str, Any]]:
    """Complete lines of a JSONL file; one that a crash cut short is left out."""
    if not path.is_file():
        return []
    text = path.read_text("utf-8")
    try:
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    except ValueError as error:
        raise CorruptCheckpointError(f"{path} is not JSON: {error}", hint="put it back as it was") from error
