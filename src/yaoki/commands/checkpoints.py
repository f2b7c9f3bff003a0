"""What can be said of a run's checkpoints without torch: list them, read them all, say which would go.

Everything is plain JSON, newest first. A list reads the manifests only; `verify_checkpoints` reads all files.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import xxhash

from yaoki.checkpoint.catalog import Catalog, ValidCheckpoint
from yaoki.checkpoint.layout import STATE, UNFINISHED_REASON, Candidate, Kind, directory_name
from yaoki.checkpoint.pins import Pins
from yaoki.checkpoint.retention import Policy
from yaoki.checkpoint.verify import read_manifest, verify
from yaoki.config.schema import CheckpointConfig
from yaoki.errors import CorruptCheckpointError, NothingThereError, RefusedError
from yaoki.journal.metrics import held_out_accuracies
from yaoki.journal.step_row import StepRow
from yaoki.runs.directory import RunDirectory
from yaoki.strict_json import FormatError, parse


def list_checkpoints(directory: RunDirectory, rows: Sequence[StepRow]) -> list[dict[str, Any]]:
    """Every checkpoint and beginning of one; `rows` are those of metrics.jsonl, for the accuracies."""
    catalog = Catalog(directory.checkpoints)
    pins = Pins(directory.checkpoints).by_step()
    accuracies = held_out_accuracies(rows, directory.final_accuracy())
    now_s = time.time()
    found = []
    for candidate in catalog.candidates():
        entry = _shown(candidate)
        if candidate.kind is Kind.UNFINISHED:
            entry["problem"] = UNFINISHED_REASON
        else:
            entry["held_out_accuracy"] = accuracies.get(candidate.step)
            entry["pins"] = list(pins.get(candidate.step, ()))
            entry |= _head(candidate, now_s)
        found.append(entry)
    return found


def rows_of(directory: RunDirectory, checkpoint: ValidCheckpoint) -> bytes:
    """The beginning of metrics.jsonl that the checkpoint counts as its own.

    CorruptCheckpointError if the file begins otherwise.
    """
    path = checkpoint.path / STATE
    try:
        match parse(path.read_bytes()):
            case {"shared": {"metrics": {"num_bytes": int(num_bytes), "xxh3_128": str(digest)}}}:
                pass
            case _:
                raise FormatError("it does not say where its metrics end")
    except FormatError as error:
        raise CorruptCheckpointError(str(error), path=path) from error
    rows = directory.metrics_path.read_bytes()[:num_bytes]
    if xxhash.xxh3_128_hexdigest(rows) != digest:
        raise CorruptCheckpointError(
            f"{directory.metrics_path} does not begin with the {num_bytes:,} bytes that "
            f"{checkpoint.path.name} was made with",
            hint="put the file back as it was",
        )
    return rows


def verify_checkpoints(directory: RunDirectory, at: int | None = None) -> Iterator[dict[str, Any]]:
    """Read every byte of every checkpoint, or of those of one step; `problem` is None for one that is whole.

    NothingThereError where there is none to read.
    """
    directory.require_run()
    candidates = [
        candidate
        for candidate in Catalog(directory.checkpoints).candidates()
        if candidate.kind is not Kind.UNFINISHED and at in (None, candidate.step)
    ]
    if at is not None and not candidates:
        require_checkpoint(directory, at)
    if not candidates:
        raise NothingThereError(
            f"{directory.path} has no checkpoint yet", hint="train until the first one is saved"
        )
    for candidate in candidates:
        problem, size_bytes = None, None
        try:
            size_bytes = verify(candidate.path).size_bytes
        except CorruptCheckpointError as error:
            problem = error.below(candidate.path)
        yield {**_shown(candidate), "problem": problem, "size_bytes": size_bytes}


def prune_checkpoints(
    directory: RunDirectory, policy: Policy, *, dry_run: bool, rows: Sequence[StepRow]
) -> list[dict[str, Any]]:
    """What stays and what goes, and why; unless it is a dry run, what goes is gone on return.

    Reads the newest checkpoints in full, until `policy.keep_last` of them are known to be whole.
    RefusedError while the run is training: it removes checkpoints itself.
    """
    directory.require_run()
    accuracies = held_out_accuracies(rows, directory.final_accuracy())
    catalog = Catalog(directory.checkpoints)
    with contextlib.nullcontext() if dry_run else directory.lock():
        decisions = catalog.decide(policy, accuracies)
        gone = [] if dry_run else catalog.prune(policy, metrics=accuracies)
    return [
        {
            "name": path.name,
            "step": decision.entry.step,
            "standing": str(decision.entry.standing),
            "stays": decision.stays,
            "reasons": list(decision.reasons),
            "removed": path in gone,
        }
        for path, decision in decisions
    ]


def policy_of(config: CheckpointConfig, keep_since_unix_s: float | None = None) -> Policy:
    """What the config keeps, and what was committed since an instant."""
    return Policy(config.keep_last, config.keep_every or None, config.keep_best, keep_since_unix_s)


def pin_checkpoint(directory: RunDirectory, name: str, step: int) -> None:
    """Make sure that the checkpoint of `step` stays, whatever is pruned, also by a process that trains now.

    NothingThereError if there is none, or if it was removed at this very moment; RefusedError if the name
    holds another one.
    """
    require_checkpoint(directory, step)
    if (held := Pins(directory.checkpoints).by_name().get(name, step)) != step:
        raise RefusedError(
            f"step {held} is pinned as {name}",
            hint=f"take another name, or let it go first: yaoki checkpoints unpin {directory.path} {name}",
        )
    Pins(directory.checkpoints).set(name, step)
    try:
        require_checkpoint(directory, step)
    except NothingThereError:
        Pins(directory.checkpoints).remove(name)
        raise


def unpin_checkpoint(directory: RunDirectory, name: str) -> int:
    """Let the step that is pinned as `name` go, and return it. NothingThereError for an unknown name."""
    directory.require_run()
    return Pins(directory.checkpoints).remove(name)


def _shown(candidate: Candidate) -> dict[str, Any]:
    return {"name": candidate.path.name, "step": candidate.step, "state": str(candidate.kind)}


def _head(candidate: Candidate, now_s: float) -> dict[str, Any]:
    try:
        manifest = read_manifest(candidate.path)
    except CorruptCheckpointError as error:
        return {"state": "unreadable", "problem": error.below(candidate.path)}
    return {
        "size_bytes": manifest.size_bytes,
        "created_unix_s": manifest.created_unix_s,
        "age_s": round(now_s - manifest.created_unix_s),
        "run_id": manifest.run_id,
        "attempt": manifest.attempt,
        "parent": manifest.parent,
        "parts": [part.name for part in manifest.parts],
    }


_NUM_SHOWN = 20


def find_checkpoint(directory: RunDirectory, at: int | None) -> ValidCheckpoint:
    """The checkpoint of a step, verified; the newest valid one for None.

    Raises NothingThereError where there is none, CorruptCheckpointError where it is damaged.
    """
    directory.require_run()
    if at is not None:
        path = require_checkpoint(directory, at)
        return ValidCheckpoint(path, verify(path))
    choice = Catalog(directory.checkpoints).choose_or_raise()
    if choice.checkpoint is None:
        raise NothingThereError(
            f"{directory.path} has no checkpoint yet", hint="train until the first one is saved"
        )
    return choice.checkpoint


def require_checkpoint(directory: RunDirectory, step: int) -> Path:
    """Where the checkpoint of `step` is, going by its name only. NothingThereError if there is none."""
    directory.require_run()
    path = directory.checkpoints / directory_name(step)
    if path.is_dir():
        return path
    steps = sorted(
        {c.step for c in Catalog(directory.checkpoints).candidates() if c.kind is not Kind.UNFINISHED}
    )
    shown = ", ".join(map(str, steps[-_NUM_SHOWN:])) or "none"
    raise NothingThereError(
        f"{directory.path} has no checkpoint of step {step}",
        hint=f"it has those of steps {shown}" if len(steps) <= _NUM_SHOWN else f"the newest are {shown}",
    )
