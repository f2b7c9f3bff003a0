"""Which segments of a step can be used by a resume, and what they hold together.

The segments of all ranks and attempts are read, in the order (attempt, rank, number), so which of two that
contradict each other counts depends on their content alone.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from yaoki import fs
from yaoki.journal.columns import RolloutRows
from yaoki.journal.layout import segment_names
from yaoki.journal.segments import JournalIdentity, Segment, SegmentHeader, UnusableSegment, read_segment
from yaoki.types import JudgedCompletion, Prompt, RolloutKey


@dataclass(frozen=True, slots=True)
class RejectedSegment:
    """A segment that is not used, and why."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(slots=True)
class StepContents:
    """The rollouts of a step that can be used, each once."""

    rejected: list[RejectedSegment] = field(default_factory=list)
    _rows: dict[RolloutKey, tuple[Path, RolloutRows, int]] = field(default_factory=dict)

    def find(self, keys: Sequence[RolloutKey]) -> list[JudgedCompletion] | None:
        """The completions of these rollouts, or None if one of them is missing."""
        found = [self._rows[key] for key in keys if key in self._rows]
        return [rows.judged(row) for _, rows, row in found] if len(found) == len(keys) else None

    def add(self, path: Path, rows: RolloutRows) -> None:
        """Add the new rows; UnusableSegment if none is new, or if one contradicts an earlier one."""
        new: dict[RolloutKey, tuple[Path, RolloutRows, int]] = {}
        earlier = path
        for row, key in enumerate(rows.keys):
            if key not in self._rows:
                new[key] = (path, rows, row)
                continue
            earlier, earlier_rows, earlier_row = self._rows[key]
            if earlier_rows.content(earlier_row) != rows.content(row):
                raise UnusableSegment(
                    f"it holds another completion of prompt {key.prompt}, sample {key.sample} "
                    f"than {earlier.name}, which comes first"
                )
        if not new:
            raise UnusableSegment(f"duplicate: {earlier.name} holds the same")
        self._rows |= new


def read_segments(
    directory: Path, columns: Sequence[str] | None = None
) -> tuple[list[Segment], list[RejectedSegment]]:
    """All valid segments of a step's directory, ordered by (attempt, rank, number), and the rejected ones."""
    segments: list[Segment] = []
    rejected: list[RejectedSegment] = []
    for path in [directory / str(name) for name in segment_names(directory) if not name.suffix]:
        try:
            segments.append(read_segment(path, columns))
        except UnusableSegment as reason:
            rejected.append(RejectedSegment(path, str(reason)))
        except FileNotFoundError:
            continue  # another rank has quarantined it in the meantime
    return sorted(segments, key=lambda s: (s.header.attempt, s.header.rank, s.path.name)), rejected


def read_step_for(
    directory: Path, identity: JournalIdentity, step: int, policy_version: int, prompts: Sequence[Prompt]
) -> StepContents:
    """The content of a step for a resume of this run with this config, from this policy and these prompts.

    Files whose names only resemble those of segments are ignored.
    """
    segments, rejected = read_segments(directory)
    contents = StepContents(rejected)
    expected = (identity.run_id, identity.config_digest, step, policy_version)
    for segment in segments:
        try:
            _require_header(segment.header, expected)
            rows = _rows(segment)
            _require_prompts(rows, prompts)
            contents.add(segment.path, rows)
        except UnusableSegment as reason:
            contents.rejected.append(RejectedSegment(segment.path, str(reason)))
    return contents


def _require_header(header: SegmentHeader, expected: tuple[str, str, int, int]) -> None:
    names = ("run", "config digest", "step", "policy version")
    found = (header.run_id, header.config_digest, header.step, header.policy_version)
    for name, is_of, right in zip(names, found, expected, strict=True):
        if is_of != right:
            raise UnusableSegment(f"it is of {name} {is_of}, not {right}")


def _rows(segment: Segment) -> RolloutRows:
    """The segment's rows, which must agree with its header."""
    for name in ("step", "policy_version", "attempt"):
        expected = getattr(segment.header, name)
        if not np.all(segment.table[name].to_numpy() == expected):
            raise UnusableSegment(f"a row is not of {name} {expected}, as its metadata says")
    try:
        return RolloutRows(segment.table)
    except ValueError as error:
        raise UnusableSegment(f"a row that no rollout has: {error}") from error


def _require_prompts(rows: RolloutRows, prompts: Sequence[Prompt]) -> None:
    """Each row must belong to the prompt that the step has at its index."""
    for (_, index, sample), uid, ids in zip(rows.keys, rows.task_uids, rows.prompt_ids, strict=True):
        if not 0 <= index < len(prompts) or sample < 0:
            raise UnusableSegment(f"there is no prompt {index}, sample {sample} among {len(prompts)} prompts")
        prompt = prompts[index]
        if uid != prompt.task.uid:
            raise UnusableSegment(f"prompt {index} of the step is of task {prompt.task.uid}, not {uid}")
        if not np.array_equal(ids, prompt.token_ids):
            raise UnusableSegment(f"prompt {index} of the step has other token ids")


def quarantine(rejected: RejectedSegment, directory: Path) -> Path:
    """Move a segment into `directory`, with `NAME.reason.txt` beside it; returns its new path.

    Durable on return. After a crash in between, the segment is where it was and will be rejected again.
    """
    fs.make_directory(directory)
    target, count = directory / rejected.path.name, 1
    while os.path.lexists(target):
        count += 1
        target = directory / f"{rejected.path.name}.{count}"
    fs.publish(target.with_name(f"{target.name}.reason.txt"), f"{rejected}\n".encode("utf-8", "replace"))
    fs.replace_durably(rejected.path, target)
    return target
