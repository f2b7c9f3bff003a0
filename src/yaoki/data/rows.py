"""What a row means: problem and answer from one value of JSON or Parquet, in each format that is read.

A parser returns (problem, answer), both stripped and not blank, or raises ValueError with what is
wrong. Files and row numbers are not known here.
"""

import functools
import math
import re
from collections.abc import Callable, Sequence

RowParser = Callable[[object], tuple[str, str]]

FORMATS = ("auto", "orz", "orz_eval", "gsm8k", "jsonl", "parquet")

_GSM8K_MARK = "####"
_THOUSANDS = re.compile(r"(?<=\d),(?=\d)")
_MAX_EXACT_FLOAT = 2**53


def find_format(format: str, rows: Sequence[object], problem_column: str, answer_column: str) -> RowParser:
    """The parser for a file; for "auto", by the first of its rows that looks like one of the formats."""
    named = functools.partial(parse_columns, problem_column=problem_column, answer_column=answer_column)
    parsers: dict[str, RowParser] = {"orz": parse_orz, "orz_eval": parse_orz_eval, "gsm8k": parse_gsm8k}
    if format == "auto":
        format = next((found for found in map(_looks_like, rows) if found is not None), "jsonl")
    return parsers.get(format, named)


def parse_orz(row: object) -> tuple[str, str]:
    """Open-Reasoner-Zero's training form: a question turn, then a turn with `ground_truth.value`.

    Turns may be called `human` or `Human`, and carry other keys such as `pass_at_n`.
    """
    if not isinstance(row, list) or len(row) < 2:
        raise ValueError(f"expected a list of two turns, got {_shown(row)}")
    truth = _field(row[1], "ground_truth", "the second turn")
    return _turn(row[0], "human"), _answer(_field(truth, "value", "ground_truth"), "ground_truth.value")


def parse_orz_eval(row: object) -> tuple[str, str]:
    """Open-Reasoner-Zero's evaluation form: `prompt` with one user turn, and `final_answer`."""
    turns = _field(row, "prompt", "the row")
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"'prompt' should be a list of turns, got {_shown(turns)}")
    return _turn(turns[0], "user"), _answer(_field(row, "final_answer", "the row"), "'final_answer'")


def parse_gsm8k(row: object) -> tuple[str, str]:
    """GSM8K: `question`, and `answer` that ends in `#### 1,234`; commas inside numbers are dropped."""
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
    """Text of a string or a number. A whole float is written as an integer: tables turn 3 into 3.0."""
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
        raise ValueError(f"{name} holds half a surrogate pair, which is not valid text")
    return value


def _shown(value: object) -> str:
    """A value in an error message: its type and how it begins."""
    return f"{type(value).__name__} {str(value)[:60]!r}"
