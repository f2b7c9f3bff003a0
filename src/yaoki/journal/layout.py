"""The names on disk: directories of steps in a run's `rollouts/`, and the segments in each of them.

step-00000124/rank-000-part-00007-<xxh3_128 of the file>.parquet
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from yaoki.errors import YaokiError

UNFINISHED_SUFFIX = ".tmp"

_STEP = re.compile(r"step-([0-9]{8,18})")
_SEGMENT = re.compile(r"rank-([0-9]{3,9})-part-([0-9]{5,9})-([0-9a-f]{32})\.parquet(\..*)?")


@dataclass(frozen=True, slots=True)
class SegmentName:
    """A file name that is a segment's, or begins with one."""

    rank: int
    number: int
    """Counts the segments of a rank in a step."""
    digest: str
    """xxh3_128 of the file's bytes."""
    suffix: str = ""
    """Empty for a segment; `.tmp` while it is being written."""

    def __str__(self) -> str:
        return f"rank-{self.rank:03d}-part-{self.number:05d}-{self.digest}.parquet{self.suffix}"


def parse_segment(name: str) -> SegmentName | None:
    """None for a name that does not begin with a segment's."""
    match = _SEGMENT.fullmatch(name)
    if match is None:
        return None
    rank, number, digest, suffix = match.groups()
    return SegmentName(int(rank), int(number), digest, suffix or "")


def segment_names(directory: Path) -> list[SegmentName]:
    """The names in a step's directory that are segments' or begin with one, in order."""
    parsed = map(parse_segment, names_in(directory))
    return [name for name in parsed if name is not None]


def step_name(step: int) -> str:
    """Name of the directory of a step."""
    return f"step-{step:08d}"


def parse_step(name: str) -> int | None:
    """The inverse of `step_name`; None for any other name."""
    match = _STEP.fullmatch(name)
    return int(match[1]) if match is not None else None


def names_in(directory: Path) -> list[str]:
    """Sorted names of a directory; empty if it does not exist. YaokiError if it cannot be read."""
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unreadable(directory, error) from error


def unreadable(path: Path, error: OSError) -> YaokiError:
    """The error for content that the disk does not return."""
    return YaokiError(
        f"{path} cannot be read: {error.strerror}",
        hint="check the disk; if the file is lost, move it away: its rollouts are then sampled again",
    )
