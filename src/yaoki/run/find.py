"""Finding a checkpoint by its step. No torch in here."""

from pathlib import Path

from yaoki.checkpoint.catalog import Catalog, ValidCheckpoint
from yaoki.checkpoint.layout import Kind, directory_name
from yaoki.checkpoint.verify import verify
from yaoki.errors import NothingThereError
from yaoki.run.directory import RunDirectory

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
