"""Metrics rows as TensorBoard events. Written beside metrics.jsonl, never read."""

import time
from collections.abc import Callable
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from yaoki.journal.metrics import Row


class Board:
    """Scalars of every row. Events of steps from `first_step` on that an earlier attempt wrote are purged."""

    def __init__(self, directory: Path, first_step: int, warn: Callable[[str], None]) -> None:
        _wait_for_a_new_second(directory)
        self._writer = SummaryWriter(str(directory), purge_step=first_step)
        self._warn = warn
        self._is_broken = False

    def write(self, row: Row) -> None:
        """Add one row's numbers under their names; those of `timing` under `timing/`."""
        if self._is_broken:
            return
        try:
            self._write(row)
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        try:
            self._writer.close()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """These are for eyes only: what counts is in metrics.jsonl."""
        if not self._is_broken:
            self._warn(f"nothing more is written for TensorBoard: {error}")
        self._is_broken = True

    def _write(self, row: Row) -> None:
        values = {k: v for k, v in row.items() if k not in ("step", "attempt")}
        values |= {f"timing/{name}": value for name, value in row.get("timing", {}).items()}
        for name, value in values.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(name, value, row["step"])
        self._writer.flush()  # a killed process must not take the points of saved steps with it


def _wait_for_a_new_second(directory: Path) -> None:
    """TensorBoard reads event files in the order of their names, which begin with the second of their birth:
    a purge must not come before what it purges. Waits a second at most: a clock may have been set back."""
    births = [int(path.name.split(".")[3]) for path in directory.glob("events.out.tfevents.*")]
    for _ in range(20):
        if not births or time.time() >= max(births) + 1:
            return
        time.sleep(0.05)
