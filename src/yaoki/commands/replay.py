"""`yaoki restore`: the checkpoint of any step, by replaying the journal from the nearest earlier checkpoint.

The steps are trained again in a scratch directory beside the run's, nothing is sampled, and each step is
compared with the run's record of it. The resulting checkpoint is moved into the run's checkpoints.
"""

from pathlib import Path

from yaoki import fs
from yaoki.checkpoint.catalog import Catalog, ValidCheckpoint, adopt_checkpoint
from yaoki.checkpoint.layout import Kind, directory_name
from yaoki.checkpoint.pins import Pins
from yaoki.checkpoint.verify import verify
from yaoki.config.schema import Config
from yaoki.errors import CorruptCheckpointError, DivergenceError, NothingThereError, UsageError
from yaoki.fs import copy_file, copy_tree, link_files
from yaoki.journal.layout import step_name
from yaoki.journal.metrics import read_rows
from yaoki.runs.directory import RunDirectory
from yaoki.train.console import Console
from yaoki.train.session import train

_RECORDS = ("run.json", "start.json", "attempts.jsonl", "metrics.jsonl")
"""Files that make the scratch directory the same run, with the rows that replayed steps are compared with."""


def restore_step(directory: RunDirectory, step: int, console: Console) -> Path:
    """The checkpoint of `step`, restored unless there is a valid one, and pinned as `restored-STEP`.

    Raises:
        NothingThereError: the run has not reached `step`, or the journal lacks rollouts of a needed step.
        RefusedError: the run is training.
        DivergenceError: a replayed step has other bits than the run recorded.
    """
    directory.require_run()
    if step < 0:
        raise UsageError(f"step {step} does not exist", hint="0 is the state before the first step")
    path = directory.checkpoints / directory_name(step)
    with directory.lock():
        if not _is_whole(path):
            base = _base(directory, step)
            _restore(directory, base, step, console)
        verify(path)
        Pins(directory.checkpoints).set(f"restored-{step}", step)
    return path


def _is_whole(path: Path) -> bool:
    try:
        verify(path)
    except CorruptCheckpointError:
        return False
    return True


def _base(directory: RunDirectory, step: int) -> ValidCheckpoint | None:
    """The newest valid checkpoint before `step`; None if the replay starts from step 0."""
    for candidate in Catalog(directory.checkpoints).candidates():
        if candidate.kind is not Kind.UNFINISHED and candidate.step < step:
            try:
                return ValidCheckpoint(candidate.path, verify(candidate.path))
            except CorruptCheckpointError:
                continue
    return None


def _restore(directory: RunDirectory, base: ValidCheckpoint | None, step: int, console: Console) -> None:
    _require_recorded(directory, step)
    first = 0 if base is None else base.manifest.step
    missing = [n for n in range(first + 1, step + 1) if not (directory.rollouts / step_name(n)).is_dir()]
    if missing:
        raise NothingThereError(
            f"step {step} cannot be restored: the nearest checkpoint before it is of step {first}, and the "
            f"journal has no rollouts of step {missing[0]}",
            hint="`yaoki checkpoints list` shows the checkpoints; with journal.keep=all every step can be "
            "restored",
        )
    scratch = RunDirectory(directory.restoring)
    if scratch.path.exists():
        fs.remove_tree(scratch.path)
    try:
        _prepare(directory, base, range(first + 1, step + 1), scratch)
        config = _config(directory.stored_config(), step)
        scratch.store_config(_config(directory.stored_config(), max(step, 1)))  # a config has no step 0
        base_name = "the config" if base is None else base.path.name
        console.note(f"restoring step {step} of {directory.path} from {base_name} and the journal")
        train(scratch, config, console, replay_only=True)
        _require_same_rows(directory, scratch, step)
        fs.make_directory(directory.checkpoints)
        name = directory_name(step)
        if (directory.checkpoints / name).exists():
            fs.remove_tree(directory.checkpoints / name)  # a damaged one
        fs.replace_durably(scratch.checkpoints / name, directory.checkpoints / name)
    finally:
        if scratch.path.exists():
            fs.remove_tree(scratch.path)


def _require_recorded(directory: RunDirectory, step: int) -> None:
    last = max((row.step for row in read_rows(directory.metrics_path)), default=0)
    if step > last:
        raise NothingThereError(
            f"{directory.path} has no row of step {step}, its last one is of step {last}",
            hint="resume the run: it replays the journal",
        )


def _require_same_rows(directory: RunDirectory, scratch: RunDirectory, step: int) -> None:
    """DivergenceError if the run could not resume from the new checkpoint, as its rows differ."""
    rows = scratch.metrics_path.read_bytes()
    if not directory.metrics_path.read_bytes().startswith(rows):
        raise DivergenceError(
            f"the replay up to step {step} has other rows than {directory.metrics_path}, which were written "
            "in another environment",
            hint="a step is restored by one worker, with the run's config and on a machine like the run's",
        )


def _config(config: Config, step: int) -> Config:
    """The run's config, for a replay that ends at `step`, saves there only and copies nothing to a URL."""
    changes = {
        "run": config.run.model_copy(update={"storage": "", "max_seconds": 0.0}),
        "train": config.train.model_copy(update={"steps": step}),
        "checkpoint": config.checkpoint.model_copy(update={"every_steps": 0}),
        "journal": config.journal.model_copy(update={"enabled": True, "keep": "all"}),
    }
    return config.model_copy(update=changes)


def _prepare(
    directory: RunDirectory, base: ValidCheckpoint | None, steps: range, scratch: RunDirectory
) -> None:
    """Make `scratch` the same run at checkpoint `base`, with the run's rows and rollouts of `steps`."""
    fs.make_directory(scratch.path)
    copy_tree(directory.model, scratch.model)
    for name in _RECORDS:
        if (directory.path / name).is_file():
            copy_file(directory.path / name, scratch.path / name)
    if base is not None:
        adopt_checkpoint(base, scratch.checkpoints)
    for step in steps:
        link_files(directory.rollouts / step_name(step), scratch.rollouts / step_name(step))
    for record in sorted(directory.path.glob("attempts/*/superseded.jsonl")):
        target = scratch.path / record.relative_to(directory.path)
        fs.make_directory(target.parent)
        copy_file(record, target)
