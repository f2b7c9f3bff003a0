"""Reading files that may be anything: of another size, of another kind, damaged, without end. No torch.

It knows what a manifest says of a file, not what the file holds.
"""

import os
import stat
from collections.abc import Callable, Sequence
from io import FileIO
from pathlib import Path

import xxhash

from yaoki.checkpoint.blocks import reading
from yaoki.checkpoint.manifest import FileEntry
from yaoki.errors import CorruptCheckpointError

_MAX_BYTES_IN_MEMORY = 256 << 20
"""Manifests and states are far smaller; nothing larger is taken into memory at once."""


def require_directory(path: Path) -> None:
    """CorruptCheckpointError unless `path` is a directory itself, not a link to one."""
    try:
        mode = path.lstat().st_mode
    except OSError as error:
        raise CorruptCheckpointError(f"{path}: {_reason(error)}") from error
    if not stat.S_ISDIR(mode):
        raise CorruptCheckpointError(f"{path}: {_file_type(mode)}, expected a directory")


def read_small(path: Path) -> bytes:
    """All bytes of a file that fits into memory with ease.

    Raises:
        CorruptCheckpointError: it is missing, unreadable, no regular file, or far too big.
    """
    with open_regular(path) as file:
        size_bytes = os.fstat(file.fileno()).st_size
        if size_bytes > _MAX_BYTES_IN_MEMORY:
            raise CorruptCheckpointError(
                f"{path}: it has {size_bytes} bytes, which is far too many for what it is"
            )
        try:
            return file.read(_MAX_BYTES_IN_MEMORY)
        except OSError as error:
            raise CorruptCheckpointError(f"{path}: {_reason(error)}") from error


def read_small_checked(path: Path, expected: FileEntry) -> bytes:
    """All bytes of a small file, of the expected size and digest.

    Raises:
        CorruptCheckpointError: see `read_small` and `read_checked`.
    """
    check_size(path, expected)
    data = read_small(path)
    _require_digest(path, xxhash.xxh3_128_hexdigest(data), expected)
    return data


def check_size(path: Path, expected: FileEntry) -> None:
    """CorruptCheckpointError unless this is a regular file of the expected size. Nothing of it is read."""
    with open_regular(path) as file:
        _require_size(path, file, expected)


def read_checked(
    path: Path, expected: FileEntry, blocks: Sequence[memoryview], take: Callable[[memoryview], None]
) -> None:
    """Read a file once, from the disk: give all of its bytes to `take`, in order, in views that are reused.

    Believe them only when this has returned: not until then is the digest known.

    Raises:
        CorruptCheckpointError: missing, not a regular file, wrong size or digest, unreadable; names the file.
    """
    digest = xxhash.xxh3_128()
    with open_regular(path) as file:
        _require_size(path, file, expected)
        try:
            with reading(file, blocks) as views:
                for view in views:
                    digest.update(view)
                    take(view)
        except OSError as error:
            raise CorruptCheckpointError(f"{path}: {_reason(error)}") from error
    _require_digest(path, digest.hexdigest(), expected)


def _require_digest(path: Path, found: str, expected: FileEntry) -> None:
    if found != expected.xxh3_128:
        raise CorruptCheckpointError(
            f"{path}: its xxh3-128 digest is {found}, the manifest says {expected.xxh3_128}"
        )


def _require_size(path: Path, file: FileIO, expected: FileEntry) -> None:
    size_bytes = os.fstat(file.fileno()).st_size
    if size_bytes != expected.size_bytes:
        raise CorruptCheckpointError(
            f"{path}: it has {size_bytes} bytes, the manifest says {expected.size_bytes}"
        )


def open_regular(path: Path) -> FileIO:
    """Open for reading without a buffer; never follows a link, never waits for a pipe's other end."""
    try:
        mode = path.lstat().st_mode
        if not stat.S_ISREG(mode):
            raise CorruptCheckpointError(f"{path}: {_file_type(mode)}, expected a regular file")
        return FileIO(path, "rb", opener=_open_no_follow)
    except OSError as error:
        raise CorruptCheckpointError(f"{path}: {_reason(error)}") from error


def _open_no_follow(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW)


def _file_type(mode: int) -> str:
    types = (
        (stat.S_ISREG, "a regular file"),
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISLNK, "a symbolic link"),
    )
    return next((name for is_type, name in types if is_type(mode)), "a special file")


def _reason(error: OSError) -> str:
    return "missing" if isinstance(error, FileNotFoundError) else f"unreadable: {error.strerror}"
