"""A run's directory: what lies where, who holds it, and which attempts there were. No torch in here.

run.json               id of the run, written once
config.json            the resolved config
attempts.jsonl         a line when an attempt starts, a line when it ends by itself
model/                 architecture and tokenizer, so that a resume does without the original model
metrics.jsonl          a row per step        tensorboard/   the same for TensorBoard
checkpoints/           committed checkpoints
rollouts/              the journal: what was sampled, by step
quarantine/            parts of it that were set aside, with the reason
start.json             digests of the state at step 0
saved.json             says that a checkpoint was committed, from the first one on
summary.json           accuracy before and after, written when train.steps is reached
logs/                  of the workers beside the first one
lock                   held by the process that trains
"""

import contextlib
import fcntl
import json
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from yaoki import fs
from yaoki.checkpoint.catalog import Catalog, Choice, Refusal
from yaoki.checkpoint.layout import Kind
from yaoki.config.load import read_stored
from yaoki.config.schema import Config
from yaoki.errors import CorruptCheckpointError, NothingThereError, RefusedError
from yaoki.runs.lineage import Parent
from yaoki.runs.lock import RunLock, _in_use


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
        """What the workers beside the first one say."""
        return self.path / "logs"

    @property
    def model(self) -> Path:
        return self.path / "model"

    def record_startup(self, attempt: int, seconds: Mapping[str, float]) -> None:
        """Keep how long an attempt took to its first new rollout, by phase."""
        fs.make_directory(self._attempt_directory(attempt))
        _write_json(self._attempt_directory(attempt) / "startup.json", seconds)

    @property
    def restoring(self) -> Path:
        """Where a step is done again, for as long as that takes."""
        return self.path / ".restoring"

    def remove_leftovers(self) -> None:
        """What attempts that died have left half written."""
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
        return self._run_path.is_file()

    @property
    def run_id(self) -> str:
        found = _read_json(self._run_path).get("run_id")
        if not isinstance(found, str):
            raise CorruptCheckpointError(f"{self._run_path} holds no run_id", hint="put it back as it was")
        return found

    def require_run(self) -> None:
        """NothingThereError unless there is a run here; CorruptCheckpointError if there was one."""
        self._require_not_without_name()
        if not self.exists:
            raise NothingThereError(
                f"there is no run in {self.path}",
                hint="start one: yaoki train RECIPE --run " + str(self.path),
            )

    @property
    def parent(self) -> Parent | None:
        """What this run was forked from, if it was."""
        found = _read_json(self._run_path).get("parent")
        return None if found is None else Parent.from_json(found)

    def create(self, config: Config, *, name: str | None = None, parent: Parent | None = None) -> None:
        """Make the directory a run's; run.json comes last and makes it one. `name` begins the run's id."""
        self._require_own()
        fs.make_directory(self.path)
        self.store_config(config)
        base = (name or self.path.name).encode("utf-8", "replace").decode()  # a file name may be no Unicode
        run_id = f"{base}-{secrets.token_hex(4)}"
        facts = {"run_id": run_id, "created_unix_s": time.time(), "format_version": 1}
        _write_json(self._run_path, facts | ({} if parent is None else {"parent": asdict(parent)}))

    def stored_config(self) -> Config:
        """The config of the newest attempt."""
        return read_stored(self.config_path)

    @property
    def has_begun(self) -> bool:
        """Something may have been trained or sampled; if not, an attempt has ended before that."""
        return self._start_path.exists() or self._saved_path.exists() or any(self.checkpoints.glob("*"))

    def begin_anew(self, config: Config) -> None:
        """Another config for a run that has not begun."""
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
        was_saved = self._saved_path.exists()
        return Catalog(self.checkpoints).choose(read_all=read_all, refused=refused, was_saved=was_saved)

    def mark_saved(self) -> None:
        """Remember for good that a checkpoint was committed: from now on a fresh start would be a loss."""
        if not self._saved_path.exists():
            _write_json(self._saved_path, {"first_saved_unix_s": time.time()})

    def recorded_start(self) -> dict[str, Any] | None:
        """What the first attempt said of the state at step 0."""
        return _read_json(self._start_path) if self._start_path.is_file() else None

    def record_start(self, facts: Mapping[str, Any]) -> None:
        _write_json(self._start_path, facts)

    def attempts(self) -> list[dict[str, Any]]:
        """One entry per attempt, oldest first; `outcome` is `killed` where no end was written."""
        entries: list[dict[str, Any]] = []
        for line in _lines(self._attempts_path):
            if "outcome" in line:
                entries[-1].update(line)
            else:
                entries.append(line | {"outcome": "killed"})
        return entries

    def log_attempt(self, facts: Mapping[str, Any]) -> None:
        """Append a line about the current attempt: its start, or (with `outcome`) its end."""
        file = fs.open_at_end(self._attempts_path)
        with contextlib.closing(file):
            file.cut(self._attempts_path.read_bytes().rfind(b"\n") + 1)  # a torn line would swallow this one
            file.write(json.dumps(dict(facts)).encode() + b"\n")
            file.sync()

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        _write_json(self._summary_path, summary)

    def summary(self) -> dict[str, Any] | None:
        """What the run came to, once it reached train.steps."""
        return _read_json(self._summary_path) if self._summary_path.is_file() else None

    def lock(self) -> "RunLock":
        """What keeps a second process out. RefusedError where other things live: nothing is put there."""
        self._require_own()
        return RunLock(self.path / "lock")

    def lock_holder(self) -> str | None:
        """Who trains here now, or None. Asks the lock, not the file, which outlives its holder."""
        try:
            descriptor = os.open(self.path / "lock", os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return (self.path / "lock").read_text("utf-8").strip()
        finally:
            os.close(descriptor)
        return None

    def require_free(self) -> None:
        """RefusedError if somebody trains here now, before anything is started; see `lock`."""
        if (holder := self.lock_holder()) is not None:
            raise _in_use(self.path, holder)

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
                f"{self._run_path} is missing, and there are checkpoints beside it",
                hint="put it back from a copy: it says which run they belong to",
            )

    def _attempt_directory(self, attempt: int) -> Path:
        return self.path / "attempts" / f"{attempt:04d}"

    @property
    def _run_path(self) -> Path:
        return self.path / "run.json"

    @property
    def _attempts_path(self) -> Path:
        return self.path / "attempts.jsonl"

    @property
    def _start_path(self) -> Path:
        return self.path / "start.json"

    @property
    def _saved_path(self) -> Path:
        return self.path / "saved.json"

    @property
    def _summary_path(self) -> Path:
        return self.path / "summary.json"


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


def _lines(path: Path) -> list[dict[str, Any]]:
    """Complete lines of a JSONL file; one that a crash cut short is left out."""
    if not path.is_file():
        return []
    text = path.read_text("utf-8")
    try:
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    except ValueError as error:
        raise CorruptCheckpointError(f"{path} is not JSON: {error}", hint="put it back as it was") from error
