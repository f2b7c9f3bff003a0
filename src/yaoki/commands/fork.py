"""`yaoki fork`: a new run that starts from a checkpoint of another one. Needs no torch.

The new directory is made under a temporary name and renamed, so it appears complete or not at all. It does
not depend on its parent: the checkpoint's files are hard links, or copies on another disk, and the parent may
be pruned or removed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from yaoki import fs
from yaoki.checkpoint.catalog import adopt_checkpoint
from yaoki.checkpoint.layout import directory_name
from yaoki.checkpoint.manifest import Manifest
from yaoki.checkpoint.verify import verify
from yaoki.commands.checkpoints import find_checkpoint, rows_of
from yaoki.config.load import with_overrides
from yaoki.errors import RefusedError
from yaoki.fs import copy_tree
from yaoki.runs.directory import RunDirectory
from yaoki.runs.lineage import Parent, changes_of_path


@dataclass(frozen=True, slots=True)
class Fork:
    """The new run."""

    run: Path
    run_id: str
    parent: Parent
    linked: bool
    """The checkpoint's files are hard links; otherwise copies."""
    begins_epoch: bool
    """It starts with the next epoch, as its tasks or their order differ from the parent's."""


def fork(
    source: RunDirectory,
    step: int,
    target: RunDirectory,
    overrides: Sequence[str],
    restore: Callable[[], object] | None = None,
) -> Fork:
    """Make `target` a run that starts from the checkpoint of `step`, with some settings changed.

    Args:
        restore: makes the checkpoint of `step`; called if there is none.

    Raises:
        NothingThereError: there is no such run, or no checkpoint of `step`.
        RefusedError: `target` is not empty, or the saved state does not fit the changed settings.
        UsageError: an override is invalid.
        CorruptCheckpointError: the checkpoint, or the rows of metrics.jsonl that belong to it, are damaged.
    """
    source.require_run()
    if target.path.exists() and (not target.path.is_dir() or any(target.path.iterdir())):
        raise RefusedError(f"{target.path} already exists", hint="name a new directory with --to")
    before = source.stored_config()
    config = with_overrides(before, ['run.storage=""', *overrides])  # a URL is for one run
    changes = changes_of_path(before, config)
    if restore is not None and not (source.checkpoints / directory_name(step)).is_dir():
        restore()
    checkpoint = find_checkpoint(source, step)
    parent = _parent(source, checkpoint.manifest, changes)
    making = RunDirectory(target.path.with_name(target.path.name + ".tmp"))
    if making.path.exists():
        fs.remove_tree(making.path)
    try:
        making.create(config, name=target.path.name, parent=parent)
        copy_tree(source.model, making.model)
        is_linked = adopt_checkpoint(checkpoint, making.checkpoints)
        if not is_linked:
            verify(making.checkpoints / directory_name(step))
        fs.publish(making.metrics_path, rows_of(source, checkpoint))
        making.mark_saved()
        fs.replace_durably(making.path, target.path)
    finally:
        if making.path.exists():
            fs.remove_tree(making.path)
    return Fork(target.path, target.run_id, parent, is_linked, parent.begins_epoch)


def _parent(source: RunDirectory, manifest: Manifest, changes: tuple[str, ...]) -> Parent:
    """The record of the new run's origin. A fork of a fork may start from the checkpoint that its parent
    adopted, and then has that fork's changes as well."""
    grandparent = source.parent
    if grandparent is not None and grandparent.is_source_of(manifest):
        changes = (*grandparent.changes, *(name for name in changes if name not in grandparent.changes))
    return Parent(
        run_id=manifest.run_id,
        path=str(source.path.absolute()),
        step=manifest.step,
        config_digest=manifest.config_digest,
        dataset_digest=manifest.dataset_digest,
        changes=changes,
    )
