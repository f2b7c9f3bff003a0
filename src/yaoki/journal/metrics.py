"""`metrics.jsonl`: one row per step, appended once, cut back to the checkpoint on resume.

A row is plain JSON; everything that depends on the clock is under its key `timing`, so two runs of the same
trajectory have equal rows otherwise. Knows nothing of what the numbers mean, nor of checkpoints.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yaoki import fs
from yaoki.errors import CorruptCheckpointError, YaokiError

Row = dict[str, Any]

CLOCK_KEYS = ("timing", "attempt")
"""Keys of a row that an exact resume does not reproduce."""


@dataclass(frozen=True, slots=True)
class LogPosition:
    """How much of the file belongs to the state that a checkpoint holds."""

    num_rows: int
    num_bytes: int


class MetricsLog:
    """The writer's end; one process holds it at a time."""

    def __init__(self, path: Path, superseded_path: Path) -> None:
        """`superseded_path` receives rows that are cut off, for eyes."""
        self._path = path
        self._superseded_path = superseded_path
        self.superseded: dict[int, Row] = {}
        """Rows cut off on resume, by step: what the steps to come did in an earlier attempt."""
        self._file = fs.open_at_end(path)
        rows, num_bytes = _complete_rows(path)
        self._file.cut(num_bytes)  # a line that a crash cut short must not swallow the next row
        self._position = LogPosition(len(rows), num_bytes)

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row; visible to readers at once, durable after `sync`.

        Raises YaokiError for a number that is not finite.
        """
        _require_finite(row)
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        self._file.write(line)
        self._position = LogPosition(self._position.num_rows + 1, self._position.num_bytes + len(line))

    def position(self) -> LogPosition:
        """Where the log stands; all rows up to here."""
        return self._position

    def sync(self) -> None:
        """Make every row so far survive a power cut; done before a checkpoint refers to them."""
        self._file.sync()

    def cut_back(self, position: LogPosition) -> None:
        """Drop the rows after `position`, which an earlier attempt wrote; they become `superseded`.

        Raises CorruptCheckpointError if the checkpoint's end is not the end of that many rows.
        """
        rows, size_bytes = _complete_rows(self._path)
        kept = self._path.read_bytes()[: position.num_bytes]
        if len(kept) < position.num_bytes or kept.count(b"\n") != position.num_rows or kept[-1:] not in b"\n":
            raise CorruptCheckpointError(
                f"{self._path} has {len(rows)} rows in {size_bytes} bytes, the checkpoint was made with "
                f"{position.num_rows} rows in {position.num_bytes} bytes",
                hint="put the file back as it was; Yaoki never removes rows that a checkpoint counts",
            )
        later = rows[position.num_rows :]
        if later:
            fs.make_directory(self._superseded_path.parent)
            fs.publish(self._superseded_path, b"".join(json.dumps(row).encode() + b"\n" for row in later))
        self.superseded = {int(row["step"]): row for row in later}
        self._file.cut(position.num_bytes)
        self.sync()
        self._position = position

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[Row]:
    """All complete rows; none if the file is missing. A last line that a crash cut short is left out."""
    return _complete_rows(path)[0]


def _require_finite(row: Mapping[str, Any]) -> None:
    odd = [name for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)]
    if odd:
        raise YaokiError(
            f"numbers that are not finite: {', '.join(f'{name} is {row[name]}' for name in odd)}",
            hint="training has diverged; the last checkpoint is untouched: start a new run from it with a "
            "lower learning rate",
        )


def _complete_rows(path: Path) -> tuple[list[Row], int]:
    """Rows up to the last complete line, and the bytes that they take."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return [], 0
    end = data.rfind(b"\n") + 1
    rows: list[Row] = []
    for number, line in enumerate(data[:end].splitlines(), start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise CorruptCheckpointError(f"{path}, row {number}: not JSON: {error}") from error
    return rows, end
