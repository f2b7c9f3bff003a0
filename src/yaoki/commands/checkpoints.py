"""`yaoki checkpoints list`, `verify`, `prune`, `pin` and `unpin`, without torch.

A list reads the manifests only; `verify_checkpoints` reads all files.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import xxhash

from yaoki.checkpoint.catalog import Catalog, ValidCheckpoint
from yaoki.checkpoint.layout import STATE, UNFINISHED_REASON, Candidate, Kind
from yaoki.checkpoint.pins import Pins
from yaoki.checkpoint.retention import Policy
from yaoki.checkpoint.verify import read_manifest, verify
from yaoki.config.schema import CheckpointConfig
from yaoki.errors import CorruptCheckpointError, NothingThereError, RefusedError
from yaoki.journal.metrics import held_out_accuracies
from yaoki.journal.step_row import StepRow
from yaoki.runs.directory import RunDirectory
from yaoki.strict_json import FormatError, parse


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """A checkpoint as its manifest describes it; its other files were not read."""

    name: str
    step: int
    state: str
    """`committed`, or `replaced` if its step was saved again."""
    size_bytes: int
    created_unix_s: float
    age_s: int
    run_id: str
    attempt: int
    """The attempt that saved it."""
    parent: str | None
    """The checkpoint that this attempt started from."""
    parts: tuple[str, ...]
    held_out_accuracy: float | None
    pins: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class UnusableCheckpoint:
    """A directory among the checkpoints from which no run can resume."""

    name: str
    step: int
    state: str
    """`unfinished`, or `unreadable` if its manifest is missing or damaged."""
    problem: str
    pins: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class VerifiedCheckpoint:
    """The outcome of reading every byte of a checkpoint."""

    name: str
    step: int
    state: str
    problem: str | None
    """The damaged file and what is wrong with it; None if nothing is."""
    size_bytes: int | None


@dataclass(frozen=True, slots=True)
class PruneDecision:
    """What becomes of one checkpoint."""

    name: str
    step: int
    standing: str
    stays: bool
    reasons: tuple[str, ...]
    """Why it stays."""
    removed: bool


def list_checkpoints(
    directory: RunDirectory, rows: Sequence[StepRow]
) -> list[CheckpointInfo | UnusableCheckpoint]:
    """Every checkpoint, newest first; the accuracies come from `rows`, those of metrics.jsonl."""
    pins = Pins(directory.checkpoints).by_step()
    accuracies = held_out_accuracies(rows, directory.final_accuracy())
    return [
        _describe(candidate, accuracies.get(candidate.step), pins.get(candidate.step, ()))
        for candidate in Catalog(directory.checkpoints).candidates()
    ]


def _describe(
    candidate: Candidate, accuracy: float | None, pins: tuple[str, ...]
) -> CheckpointInfo | UnusableCheckpoint:
    name, step = candidate.path.name, candidate.step
    if candidate.kind is Kind.UNFINISHED:
        return UnusableCheckpoint(name, step, str(candidate.kind), UNFINISHED_REASON, ())
    try:
        manifest = read_manifest(candidate.path)
    except CorruptCheckpointError as error:
        return UnusableCheckpoint(name, step, "unreadable", error.below(candidate.path), pins)
    return CheckpointInfo(
        name=name,
        step=step,
        state=str(candidate.kind),
        size_bytes=manifest.size_bytes,
        created_unix_s=manifest.created_unix_s,
        age_s=round(time.time() - manifest.created_unix_s),
        run_id=manifest.run_id,
        attempt=manifest.attempt,
        parent=manifest.parent,
        parts=tuple(part.name for part in manifest.parts),
        held_out_accuracy=accuracy,
        pins=pins,
    )


def rows_of(directory: RunDirectory, checkpoint: ValidCheckpoint) -> bytes:
    """The beginning of metrics.jsonl that belongs to the checkpoint.

    CorruptCheckpointError if the file begins with other bytes.
    """
    path = checkpoint.path / STATE
    try:
        match parse(path.read_bytes()):
            case {"shared": {"metrics": {"num_bytes": int(num_bytes), "xxh3_128": str(digest)}}}:
                pass
            case _:
                raise FormatError("it has no `metrics` with `num_bytes` and `xxh3_128`")
    except FormatError as error:
        raise CorruptCheckpointError(str(error), path=path) from error
    rows = directory.metrics_path.read_bytes()[:num_bytes]
    if xxhash.xxh3_128_hexdigest(rows) != digest:
        raise CorruptCheckpointError(
            f"{directory.metrics_path} does not begin with the {num_bytes:,} bytes that "
            f"{checkpoint.path.name} was saved with",
            hint="restore the file from a copy",
        )
    return rows


def verify_checkpoints(directory: RunDirectory, at: int | None = None) -> Iterator[VerifiedCheckpoint]:
    """Read every byte of every checkpoint, or of those of one step, newest first.

    NothingThereError if there is none to read.
    """
    directory.require_run()
    catalog = Catalog(directory.checkpoints)
    candidates = [
        candidate
        for candidate in catalog.candidates()
        if candidate.kind is not Kind.UNFINISHED and at in (None, candidate.step)
    ]
    if not candidates:
        raise _no_checkpoint(directory) if at is None else catalog.none_at(at)
    for candidate in candidates:
        problem, size_bytes = None, None
        try:
            size_bytes = verify(candidate.path).size_bytes
        except CorruptCheckpointError as error:
            problem = error.below(candidate.path)
        yield VerifiedCheckpoint(
            candidate.path.name, candidate.step, str(candidate.kind), problem, size_bytes
        )


def prune_checkpoints(
    directory: RunDirectory, policy: Policy, *, dry_run: bool, rows: Sequence[StepRow]
) -> list[PruneDecision]:
    """Decide which checkpoints stay, newest first; unless it is a dry run, remove the others.

    Reads the newest checkpoints in full, until `policy.keep_last` of them are verified.
    RefusedError while the run is training, which prunes by itself.
    """
    directory.require_run()
    accuracies = held_out_accuracies(rows, directory.final_accuracy())
    catalog = Catalog(directory.checkpoints)
    with contextlib.nullcontext() if dry_run else directory.lock():
        decisions = catalog.decide(policy, accuracies)
        removed = [] if dry_run else catalog.prune(policy, metrics=accuracies)
    return [
        PruneDecision(
            name=path.name,
            step=decision.entry.step,
            standing=str(decision.entry.standing),
            stays=decision.stays,
            reasons=decision.reasons,
            removed=path in removed,
        )
        for path, decision in decisions
    ]


def policy_of(config: CheckpointConfig, keep_since_unix_s: float | None = None) -> Policy:
    """The policy in a config, and optionally a time since which all are kept."""
    return Policy(config.keep_last, config.keep_every or None, config.keep_best, keep_since_unix_s)


def pin_checkpoint(directory: RunDirectory, name: str, step: int) -> None:
    """Pin the checkpoint of `step`, so that it is never pruned, not even by a process that trains now.

    NothingThereError if there is none, or if it was removed concurrently; RefusedError if another one is
    pinned by this name.
    """
    checkpoint_path(directory, step)
    if (held := Pins(directory.checkpoints).by_name().get(name, step)) != step:
        raise RefusedError(
            f"step {held} is pinned as {name}",
            hint=f"use another name, or remove the pin: yaoki checkpoints unpin {directory.path} {name}",
        )
    Pins(directory.checkpoints).set(name, step)
    try:
        checkpoint_path(directory, step)
    except NothingThereError:
        Pins(directory.checkpoints).remove(name)
        raise


def unpin_checkpoint(directory: RunDirectory, name: str) -> int:
    """Remove a pin and return its step. NothingThereError if there is none of this name."""
    directory.require_run()
    return Pins(directory.checkpoints).remove(name)


def find_checkpoint(directory: RunDirectory, at: int | None) -> ValidCheckpoint:
    """The checkpoint of a step, or the newest valid one for None; verified.

    NothingThereError if there is none, CorruptCheckpointError if it is damaged.
    """
    if at is not None:
        path = checkpoint_path(directory, at)
        return ValidCheckpoint(path, verify(path))
    directory.require_run()
    checkpoint = directory.choose_checkpoint().checkpoint
    if checkpoint is None:
        raise _no_checkpoint(directory)
    return checkpoint


def checkpoint_path(directory: RunDirectory, step: int) -> Path:
    """The path of the checkpoint of a step, which is not read. NothingThereError if there is none."""
    directory.require_run()
    return Catalog(directory.checkpoints).at(step)


def _no_checkpoint(directory: RunDirectory) -> NothingThereError:
    return NothingThereError(
        f"{directory.path} has no checkpoint yet", hint="train until the first one is saved"
    )
