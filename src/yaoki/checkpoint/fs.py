"""The only place in checkpoints with fsync, rename, unlink and rmtree. No torch.

Each function says what is durable, that is, survives a power cut, once it has returned. An OSError
from here names its path. It knows nothing of what the files hold.
"""

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

TRASH_SUFFIX = ".trash"
"""Ends the name of a directory whose removal has begun; what is in there is lost already."""


@contextlib.contextmanager
def create_durably(path: Path) -> Iterator[BinaryIO]:
    """A new file to write to; it is an error if `path` exists.

    Durable after the block: the file's bytes; its name only after `fsync_directory(path.parent)`.
    """
    try:
        with open(path, "xb") as file:
            yield file
            file.flush()  # fsync knows nothing of bytes that are still in Python's buffer
            os.fsync(file.fileno())
            if sys.platform == "linux":
                # A later read-back then asks the disk, not the cache that this write has filled.
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError as error:
        if error.filename is None:  # write and fsync report the failure, but not of what
            error.filename = str(path)
        raise


def write_file_durably(path: Path, data: bytes) -> None:
    """Create `path` with `data`. Durable after it: the bytes; the name after `fsync_directory`."""
    with create_durably(path) as file:
        file.write(data)


def fsync_directory(path: Path) -> None:
    """Durable after it: the names in `path` (created, renamed, removed), not what they hold."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(descriptor)


def sync_tree(directory: Path) -> None:
    """Durable after it: every file and name in `directory`, and its own name."""
    for path in (directory.parent, directory, *sorted(directory.rglob("*"))):
        if path.is_dir():
            fsync_directory(path)
            continue
        with path.open("rb") as file:
            os.fsync(file.fileno())


def make_directory(path: Path) -> None:
    """Create `path` and its missing ancestors; fine if they exist. Durable after it: their names."""
    if path.is_dir():
        return
    make_directory(path.parent)
    path.mkdir(exist_ok=True)
    fsync_directory(path.parent)


def replace_durably(source: Path, target: Path) -> None:
    """Rename within one directory. Durable after it: `source` is gone and `target` is what it was.

    At any instant before that either both names are as they were or the rename has happened in
    full. What `source` holds must be durable already. A file at `target` is replaced; a directory
    that is not empty is an error.
    """
    os.replace(source, target)
    fsync_directory(target.parent)


def remove_tree(path: Path) -> None:
    """Remove a directory and all in it. Durable after it: the name `path` is gone.

    The rename to a `.trash` name comes first, so that nobody sees half a checkpoint under its own
    name. After a crash a `.trash` directory may be left; call this on it.
    """
    trash = path if path.name.endswith(TRASH_SUFFIX) else path.with_name(path.name + TRASH_SUFFIX)
    if trash != path:
        if trash.exists():
            shutil.rmtree(trash)
        replace_durably(path, trash)
    shutil.rmtree(trash)


def num_free_bytes(path: Path) -> int:
    """Bytes that an unprivileged user can still write to the file system of `path`."""
    return shutil.disk_usage(path).free
