"""What a rank that is not the first has in place of what the first one writes for all. Writes nothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from yaoki.config.schema import Config
from yaoki.journal.metrics import LogPosition, MetricsLog, Row
from yaoki.run.board import Board
from yaoki.run.directory import RunDirectory


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
