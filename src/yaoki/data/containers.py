"""How a file is cut into rows: a JSON array, JSON lines, or Parquet. What a row means is not known here."""

import json
from dataclasses import dataclass
from pathlib import Path

from yaoki.errors import DataError, NothingThereError

_LINES_SUFFIXES = (".jsonl", ".ndjson")
_PARQUET_MAGIC = b"PAR1"
_DOWNLOAD_HINT = "the file may be cut short or damaged: fetch it again"


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that holds no usable value, and why."""

    what: str


Rows = list[tuple[int, object]]
"""(number from 1, the row's value or a BadRow). In JSON lines the number is that of the line."""


def read_rows(path: Path, format: str) -> Rows:
    """All rows of a file. NothingThereError if it is missing, DataError if it cannot be cut into rows."""
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
    """One value a line; blank lines are passed over but counted."""
    lines = enumerate(text.split("\n"), start=1)
    return [(number, _json_line(line)) for number, line in lines if line.strip()]


def _json_line(line: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        return BadRow(f"not valid JSON: {error}")


def _parquet_rows(path: Path, content: bytes) -> Rows:
    # pyarrow takes longer to import than most datasets take to read, and JSON needs none of it.
    import pyarrow
    from pyarrow import parquet

    if not content.startswith(_PARQUET_MAGIC):
        raise DataError(
            f"{path} is not a Parquet file: it does not begin with PAR1", hint="check data.format"
        )
    try:
        values = parquet.read_table(pyarrow.BufferReader(content)).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}", hint=_DOWNLOAD_HINT) from error
    return list(enumerate(values, start=1))
