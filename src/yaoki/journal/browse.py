"""Read access to the journal for inspection: a step's rollouts, row by row or group by group.

Damaged segments are left out and reported; run and policy are not checked.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from yaoki import fs
from yaoki.errors import NothingThereError
from yaoki.journal.columns import rollout_table, to_parquet
from yaoki.journal.layout import segment_names, step_name
from yaoki.journal.recovery import RejectedSegment, read_segments
from yaoki.journal.retention import journaled_steps
from yaoki.journal.segments import SEGMENT_SCHEMA
from yaoki.types import Rollout, VerdictReason


@dataclass(frozen=True, slots=True)
class RolloutRow:
    """One rollout, for display."""

    step: int
    prompt: int
    sample: int
    policy_version: int
    attempt: int
    task_uid: str
    problem: str
    answer: str
    reward: float
    verdict: str
    extracted: str | None
    finish_reason: str
    num_tokens: int
    text: str


@dataclass(frozen=True, slots=True)
class GroupResult:
    """How often one prompt of a step was solved."""

    step: int
    prompt: int
    task_uid: str
    problem: str
    answer: str
    num_samples: int
    num_correct: int


def read_step(
    directory: Path, step: int, columns: Sequence[str] | None = None
) -> tuple[pa.Table, list[RejectedSegment]]:
    """All rollouts of a step, ordered by (prompt, sample), each once; and the damaged segments.

    `columns` of SEGMENT_SCHEMA; all if not given. Raises NothingThereError if the journal has no such step.
    """
    names = list(columns or SEGMENT_SCHEMA.names)
    needed = list(dict.fromkeys([*names, "prompt", "sample"]))
    place = directory / step_name(step)
    if not place.is_dir():
        raise NothingThereError(f"the journal holds nothing of step {step}", hint=_available(directory))
    segments, rejected = read_segments(place, needed)
    schema = pa.schema([SEGMENT_SCHEMA.field(name) for name in needed])
    tables = [segment.table.select(needed).replace_schema_metadata() for segment in segments]
    table = pa.concat_tables([schema.empty_table(), *tables])
    order = table["prompt"].to_numpy().astype(np.int64) << 32 | table["sample"].to_numpy()
    _, first = np.unique(order, return_index=True)
    return table.take(first).select(names), rejected


def step_rows(
    directory: Path, step: int, *, prompt: int | None = None, correct: bool | None = None
) -> tuple[list[RolloutRow], list[RejectedSegment]]:
    """Rollouts of a step: of one prompt of its batch or of all; correct, wrong, or both (None)."""
    fields = [name for name in RolloutRow.__dataclass_fields__ if name != "num_tokens"]
    table, rejected = read_step(directory, step, [*fields, "token_ids"])
    if prompt is not None:
        table = table.filter(pc.field("prompt") == prompt)
    if correct is not None:
        is_correct = pc.field("verdict") == VerdictReason.CORRECT.value
        table = table.filter(is_correct if correct else ~is_correct)
    num_tokens = pc.list_value_length(table["token_ids"]).to_pylist()
    rows = table.select(fields).to_pylist()
    return [RolloutRow(**row, num_tokens=num) for row, num in zip(rows, num_tokens, strict=True)], rejected


def step_groups(directory: Path, step: int) -> tuple[list[GroupResult], list[RejectedSegment]]:
    """Each prompt of a step that has rollouts, in order; token ids and texts are not decoded."""
    table, rejected = read_step(directory, step, ["prompt", "task_uid", "problem", "answer", "verdict"])
    prompts, first, counts = np.unique(table["prompt"].to_numpy(), return_index=True, return_counts=True)
    is_correct = pc.equal(table["verdict"], VerdictReason.CORRECT.value).to_numpy().astype(np.int64)
    correct = np.add.reduceat(is_correct, first) if len(first) else np.zeros(0)
    tasks = table.take(first).select(["task_uid", "problem", "answer"]).to_pylist()
    return [
        GroupResult(step, int(prompt), **task, num_samples=int(count), num_correct=int(total))
        for prompt, task, count, total in zip(prompts, tasks, counts, correct, strict=True)
    ], rejected


def _available(directory: Path) -> str:
    steps = journaled_steps(directory)
    if not steps:
        return "it is empty; journal.enabled must be true while the run trains"
    return f"it holds {len(steps)} steps, {steps[0]} to {steps[-1]}; journal.keep says which are kept"


def write_completions(path: Path, rollouts: Sequence[Rollout]) -> None:
    """Write a Parquet file with one row per rollout, in order; it appears at `path` whole or not at all."""
    fs.make_directory(path.parent)
    fs.publish(path, memoryview(to_parquet(rollout_table(rollouts))))


@dataclass(frozen=True, slots=True)
class Replayable:
    """What the journal holds beyond a checkpoint."""

    num_steps: int
    """Complete steps right after the checkpoint."""
    num_rollouts: int
    """Rollouts of the first incomplete step."""


def count_replayable(
    directory: Path, after_step: int, until_step: int, *, num_wanted: int, run_id: str, config_digest: str
) -> Replayable:
    """Count from `after_step` on, up to `until_step`.

    Args:
        directory: the run's `rollouts/`.
        num_wanted: rollouts in a complete step.
    """
    for step in range(after_step + 1, until_step + 1):
        found = _num_rollouts(directory / step_name(step), run_id, config_digest)
        if found < num_wanted:
            return Replayable(step - after_step - 1, found)
    return Replayable(max(0, until_step - after_step), 0)


def _num_rollouts(directory: Path, run_id: str, config_digest: str) -> int:
    """Rows in the segments of this run and config, by their footers; without a readable one it has none."""
    wanted = {
        b"yaoki.run_id": run_id.encode("utf-8", "surrogatepass"),
        b"yaoki.config_digest": config_digest.encode(),
    }
    total = 0
    for path in [directory / str(name) for name in segment_names(directory) if not name.suffix]:
        with suppress(pa.ArrowException, OSError):
            if path.is_file() and not path.is_symlink():
                found = pq.read_metadata(path)
                total += found.num_rows if wanted.items() <= (found.metadata or {}).items() else 0
    return total
