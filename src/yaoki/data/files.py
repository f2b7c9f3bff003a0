"""Datasets from files: rows of a JSON array, JSON lines or Parquet, parsed into tasks by format."""

import functools
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from yaoki.errors import DataError, NothingThereError, UsageError, did_you_mean
from yaoki.types import Task, make_task

_LINES_SUFFIXES = (".jsonl", ".ndjson")
_PARQUET_MAGIC = b"PAR1"
_DOWNLOAD_HINT = "the file may be truncated or damaged: download it again"


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used."""

    what: str
    """What is wrong with it."""


Rows = list[tuple[int, object]]
"""(number, value or BadRow) of each row; numbers start at 1 and are those of the lines in JSON lines."""


def read_rows(path: Path, format: str) -> Rows:
    """All rows of a file. NothingThereError if it is missing, DataError if it is not of the format."""
    content = _read(path)
    if format == "parquet" or (format == "auto" and content.startswith(_PARQUET_MAGIC)):
        return _parquet_rows(path, content)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text: byte {content[error.start]:#04x} at offset {error.start}",
            hint="convert it, for instance with iconv -t utf-8, or check data.format",
        ) from error
    if not text.strip():
        raise DataError(f"{path} is empty", hint=_DOWNLOAD_HINT)
    is_lines = path.suffix.lower() in _LINES_SUFFIXES or not text.lstrip().startswith("[")
    if is_lines and format not in ("orz", "orz_eval"):
        return _json_lines(text)
    return _json_array(path, text)


def _read(path: Path) -> bytes:
    if not path.exists():
        raise NothingThereError(f"there is no data file {path}", hint="check data.files")
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}", hint="data.files must name files"
        ) from error


def _json_array(path: Path, text: str) -> Rows:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON: {error}", hint=_DOWNLOAD_HINT) from error
    if not isinstance(values, list):
        raise DataError(
            f"{path} holds a JSON {type(values).__name__}, not a list of rows", hint="check data.format"
        )
    return list(enumerate(values, start=1))


def _json_lines(text: str) -> Rows:
    """One value a line; blank lines are skipped but counted."""
    lines = enumerate(text.split("\n"), start=1)
    return [(number, _json_line(line)) for number, line in lines if line.strip()]


def _json_line(line: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        return BadRow(f"not valid JSON: {error}")


def _parquet_rows(path: Path, content: bytes) -> Rows:
    # Imported late: that takes longer than reading most datasets, and JSON does not need it.
    import pyarrow
    from pyarrow import parquet

    if not content.startswith(_PARQUET_MAGIC):
        raise DataError(
            f"{path} is not a Parquet file: it does not start with PAR1", hint="check data.format"
        )
    try:
        values = parquet.read_table(pyarrow.BufferReader(content)).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}", hint=_DOWNLOAD_HINT) from error
    return list(enumerate(values, start=1))


RowParser = Callable[[object], tuple[str, str]]

FORMATS = ("auto", "orz", "orz_eval", "gsm8k", "jsonl", "parquet")

_GSM8K_MARK = "####"
_THOUSANDS = re.compile(r"(?<=\d),(?=\d)")
_MAX_EXACT_FLOAT = 2**53


def find_format(format: str, rows: Sequence[object], problem_column: str, answer_column: str) -> RowParser:
    """The parser for a file's format; "auto" takes the format of the first row that resembles one."""
    named = functools.partial(parse_columns, problem_column=problem_column, answer_column=answer_column)
    parsers: dict[str, RowParser] = {"orz": parse_orz, "orz_eval": parse_orz_eval, "gsm8k": parse_gsm8k}
    if format == "auto":
        format = next((found for found in map(_looks_like, rows) if found is not None), "jsonl")
    return parsers.get(format, named)


def parse_orz(row: object) -> tuple[str, str]:
    """Open-Reasoner-Zero's training format: a question turn, then a turn with `ground_truth.value`.

    The first turn may be from `human` or `Human`; other keys, such as `pass_at_n`, are ignored.
    """
    if not isinstance(row, list) or len(row) < 2:
        raise ValueError(f"expected a list of two turns, got {_shown(row)}")
    truth = _field(row[1], "ground_truth", "the second turn")
    return _turn(row[0], "human"), _answer(_field(truth, "value", "ground_truth"), "ground_truth.value")


def parse_orz_eval(row: object) -> tuple[str, str]:
    """Open-Reasoner-Zero's evaluation format: `prompt` with one user turn, and `final_answer`."""
    turns = _field(row, "prompt", "the row")
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"'prompt' should be a list of turns, got {_shown(turns)}")
    return _turn(turns[0], "user"), _answer(_field(row, "final_answer", "the row"), "'final_answer'")


def parse_gsm8k(row: object) -> tuple[str, str]:
    """GSM8K: `question`, and `answer` ending in `#### 1,234`; commas inside numbers are removed."""
    problem = _problem(_field(row, "question", "the row"), "'question'")
    worked = _field(row, "answer", "the row")
    if not isinstance(worked, str) or _GSM8K_MARK not in worked:
        raise ValueError(f"'answer' should end in '#### ANSWER', got {_shown(worked)}")
    final = worked.rpartition(_GSM8K_MARK)[2]
    return problem, _answer(_THOUSANDS.sub("", final), "the answer after ####")


def parse_columns(row: object, *, problem_column: str, answer_column: str) -> tuple[str, str]:
    """A row with named columns."""
    problem = _problem(_field(row, problem_column, "the row"), f"column {problem_column!r}")
    return problem, _answer(_field(row, answer_column, "the row"), f"column {answer_column!r}")


def _looks_like(row: object) -> str | None:
    if isinstance(row, list):
        return "orz"
    if not isinstance(row, dict):
        return None
    if isinstance(row.get("prompt"), list) and "final_answer" in row:
        return "orz_eval"
    if "question" in row and _GSM8K_MARK in str(row.get("answer")):
        return "gsm8k"
    return "jsonl"


def _turn(turn: object, speaker: str) -> str:
    said_by = _field(turn, "from", "the first turn")
    if not isinstance(said_by, str) or said_by.strip().lower() != speaker:
        raise ValueError(f"the first turn should be from {speaker!r}, not {_shown(said_by)}")
    return _problem(_field(turn, "value", "the first turn"), "the problem")


def _field(value: object, key: str, where: str) -> object:
    if not isinstance(value, dict):
        raise ValueError(f"{where} should be an object with {key!r}, got {_shown(value)}")
    if key not in value:
        keys = ", ".join(str(other) for other in value) or "none"
        raise ValueError(f"{where} has no {key!r} (it has: {keys})")
    return value[key]


def _problem(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} should be text, got {_shown(value)}")
    return _text(value, name)


def _answer(value: object, name: str) -> str:
    """A string, or a number as text. A float without fraction becomes an integer: tables turn 3 into 3.0."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{name} should be text or a number, got {_shown(value)}")
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{name} is not a finite number: {value}")
        if value.is_integer() and abs(value) < _MAX_EXACT_FLOAT:
            value = int(value)
    return _text(str(value), name)


def _text(value: str, name: str) -> str:
    value = value.strip()
    if not value:
        raise ValueError(f"{name} is empty")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{name} contains a lone surrogate, which is not valid Unicode")
    return value


def _shown(value: object) -> str:
    """A value for an error message: its type and its first characters."""
    return f"{type(value).__name__} {str(value)[:60]!r}"


_NUM_MESSAGES_KEPT = 5


@dataclass(frozen=True, slots=True)
class LoadedTasks:
    """The tasks of all files, in the order of files and rows."""

    tasks: tuple[Task, ...]
    num_skipped: int
    """Bad rows that were skipped."""
    skipped: tuple[str, ...]
    """What was wrong with the first few of them."""


def read_tasks(
    files: Sequence[Path],
    *,
    format: str,
    problem_column: str,
    answer_column: str,
    on_bad_row: Literal["error", "skip"],
) -> LoadedTasks:
    """Read several files as one dataset.

    Args:
        format: one of FORMATS; "auto" is decided for each file.
        problem_column, answer_column: for the formats with named columns.

    Raises:
        NothingThereError: a file is missing.
        DataError: a file cannot be read, a row is bad (unless bad rows are skipped), or there is no task.
    """
    if format not in FORMATS:
        raise UsageError(f"there is no data format {format!r}", hint=did_you_mean(format, FORMATS))
    tasks: list[Task] = []
    problems: list[str] = []
    for path in files:
        rows = read_rows(path, format)
        parse = find_format(format, [row for _, row in rows], problem_column, answer_column)
        for number, row in rows:
            task = _task(row, parse, path)
            if isinstance(task, Task):
                tasks.append(task)
                continue
            message = f"{path}, row {number}: {task.what}"
            if on_bad_row == "error":
                raise DataError(message, hint='fix the row, or skip bad rows with data.on_bad_row="skip"')
            problems.append(message)
    if not tasks:
        where = ", ".join(str(path) for path in files) or "no files"
        first = f"; the first one: {problems[0]}" if problems else ""
        raise DataError(
            f"no task in {where}: {len(problems)} bad rows were skipped{first}",
            hint="check data.files, data.format, data.problem_column and data.answer_column",
        )
    return LoadedTasks(tuple(tasks), len(problems), tuple(problems[:_NUM_MESSAGES_KEPT]))


def _task(row: object, parse: RowParser, path: Path) -> Task | BadRow:
    """The row's task, or what is wrong with it."""
    if isinstance(row, BadRow):
        return row
    try:
        problem, answer = parse(row)
    except ValueError as error:
        return BadRow(str(error))
    return make_task(problem, answer, path.name)
