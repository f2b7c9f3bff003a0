"""Metrics rows as TensorBoard events. Written beside metrics.jsonl, never read."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from yaoki.config.schema import Config
from yaoki.journal.metrics import LogPosition, MetricsLog, Row
from yaoki.runs.directory import RunDirectory


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


@dataclass(frozen=True, slots=True)
class FollowedDirectory(RunDirectory):
    """A run's directory that another rank looks after: it is read, and what should be written is not."""

    def create(self, *_: object, **__: object) -> None:
        pass

    def store_config(self, config: Config) -> None:
        pass

    def mark_saved(self) -> None:
        pass

    def recorded_start(self) -> dict[str, Any] | None:
        return None

    def record_start(self, facts: Mapping[str, Any]) -> None:
        pass

    def record_startup(self, attempt: int, seconds: Mapping[str, float]) -> None:
        pass

    def remove_leftovers(self) -> None:
        pass

    def log_attempt(self, facts: Mapping[str, Any]) -> None:
        pass

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        pass


class FollowedMetrics(MetricsLog):
    """metrics.jsonl as the first rank writes it."""

    def __init__(self) -> None:
        pass

    def append(self, row: Mapping[str, Any]) -> None:
        pass

    def position(self) -> LogPosition:
        return LogPosition(0, 0, "")

    def sync(self) -> None:
        pass

    def cut_back(self, position: LogPosition | None) -> None:
        pass

    def close(self) -> None:
        pass


class FollowedBoard(Board):
    """TensorBoard's events as the first rank writes them."""

    def __init__(self) -> None:
        pass

    def write(self, row: Row) -> None:
        pass

    def close(self) -> None:
        pass
