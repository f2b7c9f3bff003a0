"""Names on disk: the directories in a run's `checkpoints/` and the files in one of them. No torch.

step-00000120/               a committed checkpoint
step-00000120.tmp/           not committed: being written, or left by an attempt that died
step-00000120.replaced-1/    a committed one that a later save of the same step moved aside
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from yaoki.errors import CorruptCheckpointError

MANIFEST = "manifest.json"
STATE = "state.json"
UNFINISHED_REASON = "it is being written, or its writer died before the commit"
"""Why a directory with the suffix `.tmp` cannot be used."""

_DIRECTORY = re.compile(r"step-([0-9]{8,18})(?:(\.tmp)|\.replaced-([1-9][0-9]{0,8}))?", re.ASCII)
_PART_FILE = re.compile(r".*-([0-9]{5,9})-of-[0-9]{5,9}\.safetensors", re.ASCII)
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}", re.ASCII)


class Kind(StrEnum):
    """What the name of a directory says about it."""

    COMMITTED = "committed"
    UNFINISHED = "unfinished"
    REPLACED = "replaced"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A directory that is a checkpoint by its name, or an unfinished one; nothing in it was read."""

    path: Path
    step: int
    kind: Kind
    generation: int = 0
    """The K of `replaced-K`, which counts from 1; 0 for others."""


def directory_name(step: int) -> str:
    """Name of the committed checkpoint of `step`."""
    return f"step-{step:08d}"


def unfinished_name(step: int) -> str:
    """Name of the checkpoint of `step` while it is written."""
    return directory_name(step) + ".tmp"


def replaced_name(step: int, generation: int) -> str:
    """Name of a checkpoint of `step` that was moved aside."""
    return f"{directory_name(step)}.replaced-{generation}"


def part_file_name(part: str, rank: int, world_size: int) -> str:
    """Name of the file with one rank's tensors of a part."""
    return f"{part}-{rank:05d}-of-{world_size:05d}.safetensors"


def file_rank(name: str) -> int:
    """The rank that wrote a file; 0 for files other than those of `part_file_name`."""
    match = _PART_FILE.fullmatch(name)
    return int(match[1]) if match is not None else 0


def parse_directory(path: Path) -> Candidate | None:
    """Parse the name of `path`; None if it is not the name of a checkpoint."""
    match = _DIRECTORY.fullmatch(path.name)
    if match is None or f"{int(match[1]):08d}" != match[1]:
        return None
    if match[2] is not None:
        return Candidate(path, int(match[1]), Kind.UNFINISHED)
    if match[3] is not None:
        return Candidate(path, int(match[1]), Kind.REPLACED, int(match[3]))
    return Candidate(path, int(match[1]), Kind.COMMITTED)


def is_plain_name(name: str) -> bool:
    """Whether a name has only ASCII letters, digits, `.`, `_`, `-`, and so cannot leave its directory."""
    return _PLAIN_NAME.fullmatch(name) is not None


def plain_child(directory: Path, name: str) -> Path:
    """`directory / name` for an untrusted name.

    Raises:
        CorruptCheckpointError: the name contains a separator, is `..`, or is otherwise not plain.
    """
    if not is_plain_name(name):
        raise CorruptCheckpointError(f"{name!r} is not a plain file name", path=directory)
    return directory / name
