"""Which steps the journal holds, their size, and which of them can be removed. Opens no segment."""

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from yaoki import fs
from yaoki.journal.layout import names_in, parse_step, step_name


@dataclass(frozen=True, slots=True)
class JournalSummary:
    """Size of a journal."""

    num_steps: int
    num_segments: int
    num_bytes: int
    first_step: int | None
    last_step: int | None


def journaled_steps(directory: Path) -> list[int]:
    """Steps that have a directory in the journal, in order; none if there is no journal."""
    steps = map(parse_step, names_in(directory))
    return sorted(step for step in steps if step is not None)


def journal_summary(directory: Path) -> JournalSummary:
    """Sizes from the file system; nothing is opened or verified."""
    steps, sizes = journaled_steps(directory), list[int]()
    for step in steps:
        with contextlib.suppress(FileNotFoundError), os.scandir(directory / step_name(step)) as entries:
            sizes += [entry.stat().st_size for entry in entries if entry.name.endswith(".parquet")]
    return JournalSummary(
        num_steps=len(steps),
        num_segments=len(sizes),
        num_bytes=sum(sizes),
        first_step=steps[0] if steps else None,
        last_step=steps[-1] if steps else None,
    )


def prunable_steps(steps: Iterable[int], oldest_checkpoint_step: int, keep: str) -> list[int]:
    """The steps that no resume needs and `keep` ("needed", "all" or "every N") does not keep, in order.

    A resume starts from a checkpoint, so the steps up to the oldest one are not needed.
    """
    if keep == "all":
        return []
    every = int(keep.removeprefix("every ")) if keep != "needed" else None
    return sorted(
        step for step in steps if step <= oldest_checkpoint_step and (every is None or step % every != 0)
    )


def prune_steps(directory: Path, oldest_checkpoint_step: int, keep: str) -> list[Path]:
    """Remove the prunable steps, and leftovers of a removal that a crash interrupted; returns the paths."""
    for name in names_in(directory):
        if name.endswith(fs.TRASH_SUFFIX) and parse_step(name.removesuffix(fs.TRASH_SUFFIX)) is not None:
            fs.remove_tree(directory / name)
    steps = prunable_steps(journaled_steps(directory), oldest_checkpoint_step, keep)
    removed = [directory / step_name(step) for step in steps]
    for path in removed:
        fs.remove_tree(path)
    return removed
