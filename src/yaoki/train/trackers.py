"""Trackers: where the row of each step goes. metrics.jsonl and the console are two more of them."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from torch.utils.tensorboard import SummaryWriter

from yaoki.journal.step_row import StepRow


class Tracker(Protocol):
    """Receives every step's row, on rank 0 only: other ranks have an empty list of trackers."""

    def resume_from(self, step: int) -> None:
        """The next row is that of `step`, from 1; drop or mark what an earlier attempt logged from there
        on."""
        ...

    def log(self, row: StepRow) -> None:
        """Take one row. A tracker that only informs warns once and stops when it fails; training goes on."""
        ...

    def close(self) -> None:
        """Flush and release."""
        ...


class TensorBoard:
    """Scalars of every row as TensorBoard events."""

    def __init__(self, directory: Path, warn: Callable[[str], None]) -> None:
        self._directory = directory
        self._warn = warn
        self._writer: SummaryWriter | None = None

    def resume_from(self, step: int) -> None:
        """Events of later steps are purged by TensorBoard when it reads the new file."""
        _wait_for_a_new_second(self._directory)
        self._writer = SummaryWriter(str(self._directory), purge_step=step)

    def log(self, row: StepRow) -> None:
        """Add the row's numbers under their names; those of `timing` under `timing/`."""
        if self._writer is None:
            return
        try:
            for name, value in row.scalars():
                self._writer.add_scalar(name, value, row.step)
            self._writer.flush()  # a killed process must not lose the points of saved steps
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        try:
            if self._writer is not None:
                self._writer.close()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """The record of the run is metrics.jsonl; this is a copy for display."""
        self._warn(f"nothing more is written for TensorBoard: {error}")
        self._writer = None


def _wait_for_a_new_second(directory: Path) -> None:
    """TensorBoard reads event files in the order of their names, which begin with the second of their
    creation: a purge must not sort before what it purges. Waits at most a second, in case a clock was set
    back."""
    created = [int(path.name.split(".")[3]) for path in directory.glob("events.out.tfevents.*")]
    for _ in range(20):
        if not created or time.time() >= max(created) + 1:
            return
        time.sleep(0.05)
