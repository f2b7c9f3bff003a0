"""How many rollouts a resume would find, from the footers of the parts alone: an estimate for eyes."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from yaoki.journal.layout import part_names, step_name


@dataclass(frozen=True, slots=True)
class Replayable:
    """What the journal holds beyond a checkpoint."""

    num_steps: int
    """Steps right after the checkpoint whose rollouts are all there."""
    num_rollouts: int
    """Of the step after these, which is not complete."""


def count_replayable(
    directory: Path, after_step: int, until_step: int, *, num_wanted: int, run_id: str, config_digest: str
) -> Replayable:
    """Count from `after_step` on; no step is counted beyond `until_step`.

    Args:
        directory: the run's `rollouts/`.
        num_wanted: rollouts in a complete step.
    """
    step = after_step + 1
    while step <= until_step:
        found = _num_rollouts(directory / step_name(step), run_id, config_digest)
        if found < num_wanted:
            return Replayable(step - after_step - 1, found)
        step += 1
    return Replayable(step - after_step - 1, 0)


def _num_rollouts(directory: Path, run_id: str, config_digest: str) -> int:
    """Rows in the parts of this run and config; a part whose footer cannot be read has none."""
    total = 0
    for name in part_names(directory):
        if name.suffix:
            continue
        try:
            if not stat.S_ISREG(os.lstat(directory / str(name)).st_mode):
                continue
            found = pq.read_metadata(directory / str(name))
        except (pa.ArrowException, OSError):
            continue
        said = found.metadata or {}
        if (said.get(b"yaoki.run_id"), said.get(b"yaoki.config_digest")) == (
            run_id.encode(),
            config_digest.encode(),
        ):
            total += found.num_rows
    return total
