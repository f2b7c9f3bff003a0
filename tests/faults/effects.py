"""What can happen to files, and what can go wrong with it. Does nothing itself."""

import errno
from dataclasses import dataclass
from enum import StrEnum


class Fault(StrEnum):
    """What happens at one effect."""

    DIE_BEFORE = "die before"
    DIE_WITHIN = "die within"
    """Half of the bytes are written."""
    DIE_AFTER = "die after"
    SHORT = "short write"
    """Half of the bytes are written, and the call says so."""
    NO_SPACE = "ENOSPC"
    """From here on; a write gets half of its bytes down first."""
    IO_ERROR = "EIO"
    """Once."""
    READ_ONLY = "EROFS"
    """From here on: the system has remounted the disk."""
    DENIED = "EACCES"
    """Once."""
    NOT_DIRECT = "EINVAL"
    """Once: a file system that takes direct writes only until the first one comes."""

    @property
    def is_error(self) -> bool:
        """The system reports it, nobody dies, and it may not be passed over."""
        return self in ERRNO and self is not Fault.NOT_DIRECT

    @property
    def is_death(self) -> bool:
        return self in (Fault.DIE_BEFORE, Fault.DIE_WITHIN, Fault.DIE_AFTER)


ERRNO = {
    Fault.NO_SPACE: errno.ENOSPC,
    Fault.IO_ERROR: errno.EIO,
    Fault.READ_ONLY: errno.EROFS,
    Fault.DENIED: errno.EACCES,
    Fault.NOT_DIRECT: errno.EINVAL,
}
_DEATHS = (Fault.DIE_BEFORE, Fault.DIE_AFTER)
_ON_NEW_NAMES = (*_DEATHS, Fault.NO_SPACE, Fault.READ_ONLY, Fault.DENIED)
_ON_OLD_NAMES = (*_DEATHS, Fault.READ_ONLY, Fault.DENIED, Fault.IO_ERROR)
_ON_BYTES = (*_DEATHS, Fault.DIE_WITHIN, Fault.SHORT, Fault.NO_SPACE, Fault.IO_ERROR)
FAULTS = {
    "open": _ON_NEW_NAMES,
    "mkdir": _ON_NEW_NAMES,
    "link": _ON_NEW_NAMES,
    "replace": (*_ON_NEW_NAMES, Fault.IO_ERROR),
    "unlink": _ON_OLD_NAMES,
    "rmdir": _ON_OLD_NAMES,
    "write": _ON_BYTES,
    "pwrite": _ON_BYTES,
    "write_direct": (*_ON_BYTES, Fault.NOT_DIRECT),
    "ftruncate": (*_DEATHS, Fault.IO_ERROR),
    "posix_fallocate": (*_DEATHS, Fault.NO_SPACE),
    "fsync": (*_DEATHS, Fault.IO_ERROR),
    "fdatasync": (*_DEATHS, Fault.IO_ERROR),
}
"""Kind of effect -> the faults that can befall it."""

TAKES_SPACE = {"open", "mkdir", "link", "write", "write_direct", "pwrite", "posix_fallocate"}


@dataclass(frozen=True, slots=True)
class Effect:
    """The nth effect of its kind on a path, counted from 0; `path` is relative to the recorded folder."""

    kind: str
    path: str
    nth: int

    def __str__(self) -> str:
        return f"{self.kind} {self.path} #{self.nth}"

    @property
    def can_be_done_without(self) -> bool:
        """What cannot be linked may be copied: an error is no failure."""
        return self.kind == "link"


@dataclass(frozen=True, slots=True)
class Entry:
    """An effect that has happened, with what a model of the disk needs to know; or a promise."""

    effect: Effect
    data: bytes = b""
    """What was written, at `offset`."""
    offset: int = 0
    """Also the new length, for ftruncate."""
    target: str = ""
    """The new name, for replace and link."""
    promise: str = ""
    """What the program acknowledged at this point; then there is no effect."""
