"""`metrics.jsonl`: one row per step, appended once, cut back to the checkpoint on resume.

All values that depend on the clock are in CLOCK_FIELDS; two runs of the same trajectory have otherwise equal
rows.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import xxhash
from pydantic import ValidationError

from yaoki import fs
from yaoki.errors import CorruptCheckpointError, YaokiError
from yaoki.journal.step_row import StepRow


@dataclass(frozen=True, slots=True)
class LogPosition:
    """The beginning of the file that belongs to the state in a checkpoint."""

    num_rows: int
    num_bytes: int
    xxh3_128: str
    """Digest of these bytes."""


class MetricsLog:
    """The writer of metrics.jsonl, a Tracker; one process at a time."""

    def __init__(self, path: Path, superseded_path: Path) -> None:
        """`superseded_path` receives the rows that are cut off: the same steps must reproduce them."""
        self._path = path
        self._superseded_path = superseded_path
        self._file = fs.open_at_end(path)
        self._set(b"".join(_complete_lines(path)))
        self._file.cut(self._num_bytes)  # an incomplete line must not swallow the next row

    def resume_from(self, step: int) -> None:
        """Assert that the next row is that of `step`; `cut_back` comes first."""
        assert self._num_rows == step - 1, (self._num_rows, step)

    def log(self, row: StepRow) -> None:
        """Append one row; visible to readers at once, durable after `sync`.

        Raises YaokiError for a number that is not finite.
        """
        _require_finite(row)
        line = json.dumps(row.to_json(), allow_nan=False).encode() + b"\n"
        self._file.write(line)
        self._digest.update(line)
        self._num_rows += 1
        self._num_bytes += len(line)

    def position(self) -> LogPosition:
        """The current end of the log."""
        return LogPosition(self._num_rows, self._num_bytes, self._digest.hexdigest())

    def sync(self) -> None:
        """Make every row so far survive a power cut; needed before a checkpoint refers to them."""
        self._file.sync()

    def cut_back(self, position: LogPosition | None) -> None:
        """Move the rows after `position` (None: all), which an earlier attempt wrote, to `superseded_path`.

        Raises CorruptCheckpointError if the rows before it are not those that the checkpoint was made with.
        """
        data = self._path.read_bytes()
        num_bytes = 0 if position is None else position.num_bytes
        kept, later = data[:num_bytes], data[num_bytes:].splitlines(keepends=True)
        self._set(kept)
        if position is not None and self.position() != position:
            raise CorruptCheckpointError(
                f"it does not begin with the {position.num_rows} rows in {num_bytes:,} bytes that the "
                f"checkpoint was made with: of its {len(data):,} bytes the first {len(kept):,} hold "
                f"{self._num_rows} rows of digest {self.position().xxh3_128}, not {position.xxh3_128}",
                path=self._path,
                hint="put the file back as it was; Yaoki never changes rows that a checkpoint counts",
            )
        if later:
            fs.make_directory(self._superseded_path.parent)
            fs.publish(self._superseded_path, b"".join(line for line in later if _is_row(line)))
        self._file.cut(num_bytes)
        self.sync()

    def close(self) -> None:
        self._file.close()

    def _set(self, data: bytes) -> None:
        self._num_rows, self._num_bytes = data.count(b"\n"), len(data)
        self._digest = xxhash.xxh3_128(data)


def read_rows(path: Path) -> list[StepRow]:
    """All complete rows; none if the file is missing. An incomplete last line is left out.

    Raises CorruptCheckpointError for any other line that is not a row.
    """
    rows: list[StepRow] = []
    for number, line in enumerate(_complete_lines(path), start=1):
        try:
            rows.append(StepRow.model_validate_json(line))
        except ValidationError as error:
            first = error.errors()[0]
            reason = ": ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"]]))
            raise CorruptCheckpointError(
                f"line {number} is not a row ({reason}): {line[:60]!r}", path=path
            ) from error
    return rows


def _require_finite(row: StepRow) -> None:
    odd = {name: value for name, value in row.scalars() if not math.isfinite(value)}
    if odd:
        raise YaokiError(
            f"numbers that are not finite: {', '.join(f'{name} is {value}' for name, value in odd.items())}",
            hint="training has diverged; the last checkpoint is untouched: start a new run from it with a "
            "lower learning rate",
        )


def _complete_lines(path: Path) -> list[bytes]:
    """Lines with their newlines; none if the file is missing. An incomplete last line is left out."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    return data[: data.rfind(b"\n") + 1].splitlines(keepends=True)


def _is_row(line: bytes) -> bool:
    """False for a line that a crash or the disk has damaged."""
    try:
        StepRow.model_validate_json(line)
    except ValidationError:
        return False
    return True


def held_out_accuracies(rows: Sequence[StepRow], final: tuple[int, float] | None = None) -> dict[int, float]:
    """Accuracy by the step of the checkpoint that holds the evaluated weights.

    A row's accuracy was measured before its step's update; `final` is the step and accuracy at the end of the
    run.
    """
    found = {row.step - 1: row.accuracy for row in rows if row.accuracy is not None}
    return found if final is None else found | dict([final])
