"""Datasets from files: which rows there are, what is wrong with the bad ones, and what they hold.

How a file is cut into rows is in `containers.py`, what a row means in `rows.py`. Nothing is known
here of order, prompts or tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from yaoki.data.containers import BadRow, read_rows
from yaoki.data.rows import FORMATS, RowParser, find_format
from yaoki.data.suggest import did_you_mean
from yaoki.data.tasks import make_task, tasks_digest
from yaoki.errors import DataError, UsageError
from yaoki.types import Task

_NUM_MESSAGES_KEPT = 5


@dataclass(frozen=True, slots=True)
class LoadedTasks:
    """What the files held, in the order of files and rows."""

    tasks: tuple[Task, ...]
    num_skipped: int
    """Bad rows that were left out."""
    digest: str
    """Of all problems and answers in order."""
    skipped: tuple[str, ...]
    """What was wrong with the first few of the rows that were left out."""


def read_tasks(
    files: Sequence[Path],
    *,
    format: str,
    problem_column: str,
    answer_column: str,
    on_bad_row: Literal["error", "skip"],
) -> LoadedTasks:
    """Read several files as one dataset.

    `format` is one of "auto", "orz", "orz_eval", "gsm8k", "jsonl", "parquet"; "auto" looks at each
    file. The column names count where rows have named columns. Raises NothingThereError for a missing
    file, DataError for a file that cannot be read, a bad row (unless they are skipped) or no row at all.
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
                raise DataError(
                    message, hint='mend the row, or leave such rows out with data.on_bad_row="skip"'
                )
            problems.append(message)
    if not tasks:
        where = ", ".join(str(path) for path in files) or "no files"
        first = f"; the first bad row: {problems[0]}" if problems else ""
        raise DataError(
            f"no task in {where}: {len(problems)} bad rows were skipped{first}",
            hint="check data.files, data.format, data.problem_column and data.answer_column",
        )
    skipped = tuple(problems[:_NUM_MESSAGES_KEPT])
    return LoadedTasks(tuple(tasks), len(problems), tasks_digest(tasks), skipped)


def _task(row: object, parse: RowParser, path: Path) -> Task | BadRow:
    """The row's task, or what is wrong with it."""
    if isinstance(row, BadRow):
        return row
    try:
        problem, answer = parse(row)
    except ValueError as error:
        return BadRow(str(error))
    return make_task(problem, answer, path.name)
