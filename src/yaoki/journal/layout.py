"""The names on disk: directories of steps in a run's `rollouts/`, and the parts inside one of them.

    step-00000124/rank-000-part-00007-<xxh3_128 of the file>.parquet

It knows names only, nothing of what the files hold.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from yaoki.errors import YaokiError

UNFINISHED_SUFFIX = ".tmp"

_STEP = re.compile(r"step-([0-9]{8,18})")
_PART = re.compile(r"rank-([0-9]{3,9})-part-([0-9]{5,9})-([0-9a-f]{32})\.parquet(\..*)?")


@dataclass(frozen=True, slots=True)
class SegmentName:
    """A file name that begins as a part's does."""

    rank: int
    number: int
    """Counts the parts of a rank in a step."""
    digest: str
    """xxh3_128 of the file's bytes."""
    suffix: str = ""
    """Empty for a part; `.tmp` for the beginning of one."""

    def __str__(self) -> str:
        return f"rank-{self.rank:03d}-part-{self.number:05d}-{self.digest}.parquet{self.suffix}"


def parse_segment(name: str) -> SegmentName | None:
    """None for a name that does not begin as a part's does."""
    match = _PART.fullmatch(name)
    if match is None:
        return None
    rank, number, digest, suffix = match.groups()
    return SegmentName(int(rank), int(number), digest, suffix or "")


def segment_names(directory: Path) -> list[SegmentName]:
    """The names in a step's directory that begin as those of parts do, in order."""
    parsed = map(parse_segment, names_in(directory))
    return [name for name in parsed if name is not None]


def step_name(step: int) -> str:
    """Name of the directory of a step."""
    return f"step-{step:08d}"


def parse_step(name: str) -> int | None:
    """None for a name that no step's directory has."""
    match = _STEP.fullmatch(name)
    return int(match[1]) if match is not None else None


def names_in(directory: Path) -> list[str]:
    """What a directory holds, in order; nothing if it does not exist. YaokiError if it cannot be read."""
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unreadable(directory, error) from error


def unreadable(path: Path, error: OSError) -> YaokiError:
    """What to raise where the disk does not give back what is there."""
    return YaokiError(
        f"{path} cannot be read: {error.strerror}",
        hint="see to the disk; if it is lost, move it away: its rollouts are then sampled again",
    )
