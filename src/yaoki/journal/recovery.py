"""What the parts of one step hold together, and which of them count. Changes no file.

All parts of all ranks and attempts are looked at, in the order (attempt, rank, number), so it depends on
their content alone which of two that contradict each other counts.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from yaoki import fs
from yaoki.journal.columns import RolloutRows
from yaoki.journal.layout import segment_names
from yaoki.journal.segments import JournalIdentity, Segment, SegmentRejected, read_segment
from yaoki.types import JudgedCompletion, Prompt, RolloutKey


@dataclass(frozen=True, slots=True)
class Refusal:
    """A file that does not count, and why."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the parts of a step must be of."""

    identity: JournalIdentity
    step: int
    policy_version: int
    prompts: Sequence[Prompt]


@dataclass(slots=True)
class StepContents:
    """The rollouts of a step that count, each once."""

    refused: list[Refusal] = field(default_factory=list)
    """Parts that do not count."""
    _rows: dict[RolloutKey, tuple[Path, RolloutRows, int]] = field(default_factory=dict)

    def find(self, keys: Sequence[RolloutKey]) -> list[JudgedCompletion] | None:
        """The completions of these rollouts, or None if one of them is missing."""
        found = [self._rows[key] for key in keys if key in self._rows]
        return [rows.judged(row) for _, rows, row in found] if len(found) == len(keys) else None

    def add(self, path: Path, rows: RolloutRows) -> None:
        """Add the new rows; SegmentRejected if none is new, or if one contradicts an earlier one."""
        new: dict[RolloutKey, tuple[Path, RolloutRows, int]] = {}
        other = path
        for row, key in enumerate(rows.keys):
            held = self._rows.get(key)
            if held is None:
                new[key] = (path, rows, row)
                continue
            other, other_rows, other_row = held
            if other_rows.content(other_row) != rows.content(row):
                raise SegmentRejected(
                    f"it holds another completion of prompt {key.prompt}, sample {key.sample} "
                    f"than {other.name}, which came first"
                )
        if not new:
            raise SegmentRejected(f"duplicate: {other.name} holds the same")
        self._rows |= new


def read_segments(
    directory: Path, columns: Sequence[str] | None = None
) -> tuple[list[Segment], list[Refusal]]:
    """All verified parts of a step's directory, first those that count first; and those that are refused."""
    parts: list[Segment] = []
    refused: list[Refusal] = []
    for path in [directory / str(name) for name in segment_names(directory) if not name.suffix]:
        try:
            parts.append(read_segment(path, columns))
        except SegmentRejected as reason:
            refused.append(Refusal(path, str(reason)))
        except FileNotFoundError:
            continue  # another rank has set it aside in the meantime
    return sorted(parts, key=_rank_order), refused


def read_step_for(directory: Path, wanted: Wanted) -> StepContents:
    """What counts for a resume of the step; files that only look similar to parts are passed over."""
    parts, refused = read_segments(directory)
    contents = StepContents(refused)
    for part in parts:
        try:
            _require_header(part, wanted)
            rows = _rows(part)
            _require_prompts(rows, wanted.prompts)
            contents.add(part.path, rows)
        except SegmentRejected as reason:
            contents.refused.append(Refusal(part.path, str(reason)))
    return contents


def _rank_order(part: Segment) -> tuple[int, int, str]:
    return part.header.attempt, part.header.rank, part.path.name


def _require_header(part: Segment, wanted: Wanted) -> None:
    header = part.header
    for what, found, right in (
        ("run", header.run_id, wanted.identity.run_id),
        ("config digest", header.config_digest, wanted.identity.config_digest),
        ("step", header.step, wanted.step),
        ("policy version", header.policy_version, wanted.policy_version),
    ):
        if found != right:
            raise SegmentRejected(f"it is of {what} {found}, not {right}")


def _rows(part: Segment) -> RolloutRows:
    """The part's rows, which must be what its header says."""
    for name in ("step", "policy_version", "attempt"):
        said = getattr(part.header, name)
        if not np.all(part.table[name].to_numpy() == said):
            raise SegmentRejected(f"a row is not of {name} {said}, as its metadata says")
    try:
        return RolloutRows(part.table)
    except ValueError as error:
        raise SegmentRejected(f"a row that no rollout has: {error}") from error


def _require_prompts(rows: RolloutRows, prompts: Sequence[Prompt]) -> None:
    """Each row must belong to the prompt that the step has at its index."""
    for row, (_, index, sample) in enumerate(rows.keys):
        if not 0 <= index < len(prompts) or sample < 0:
            raise SegmentRejected(f"there is no prompt {index}, sample {sample} among {len(prompts)} prompts")
        prompt = prompts[index]
        if rows.task_uids[row] != prompt.task.uid:
            raise SegmentRejected(
                f"prompt {index} of the step is of task {prompt.task.uid}, not {rows.task_uids[row]}"
            )
        if not np.array_equal(rows.prompt_ids[row], prompt.token_ids):
            raise SegmentRejected(f"prompt {index} of the step has other token ids")


def set_aside(refusal: Refusal, directory: Path) -> Refusal:
    """Move the file into `directory`, with `<name>.reason.txt` beside it; says where it is now.

    Durable on return. After a crash in between, the file is where it was and will be refused again.
    """
    fs.make_directory(directory)
    target = _free_name(directory, refusal.path.name)
    fs.publish(target.with_name(target.name + ".reason.txt"), f"{refusal}\n".encode("utf-8", "replace"))
    fs.replace_durably(refusal.path, target)
    return Refusal(target, refusal.reason)


def _free_name(directory: Path, name: str) -> Path:
    """`name`, or with a number where one of that name is there already."""
    target, count = directory / name, 1
    while os.path.lexists(target):
        count += 1
        target = directory / f"{name}.{count}"
    return target
