"""All changes to the files of a run: each write, fsync, rename, link and unlink. No torch.

Each function says what is durable (survives a power cut) when it returns. An OSError from here names its
path. Every effect is one call of a function in `os`, so a test that replaces `os` in this module sees each of
them and can make it fail.
"""

import contextlib
import errno
import fcntl
import os
import sys
from collections.abc import Iterator
from pathlib import Path

TRASH_SUFFIX = ".trash"
"""Suffix of a directory whose removal has begun; its files count as lost."""

ALIGNMENT_BYTES = 4096
"""O_DIRECT requires address, length and file offset to be multiples of this."""

Bytes = bytes | memoryview


class OpenFile:
    """A file opened for writing, from its beginning or at its end."""

    def __init__(self, path: Path, flags: int) -> None:
        self.path = path
        self._is_direct = False
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | flags, 0o644)

    def write_directly(self) -> None:
        """Use O_DIRECT from here on, if the file system supports it.

        Blocks must then be aligned in memory; only the last one may have a length that is not aligned.
        """
        self._is_direct = set_direct(self._descriptor, True)

    def write(self, data: Bytes) -> None:
        """Write all of `data`. Durable only after `sync`."""
        left = memoryview(data).cast("B")
        with self._named_errors():
            while left:
                if self._is_direct and len(left) % ALIGNMENT_BYTES:
                    self._is_direct = set_direct(self._descriptor, False)
                try:
                    left = left[os.write(self._descriptor, left) :]
                except OSError as error:
                    if error.errno != errno.EINVAL or not self._is_direct:
                        raise
                    # Some file systems accept the flag and then refuse the write.
                    self._is_direct = set_direct(self._descriptor, False)

    def cut(self, num_bytes: int) -> None:
        """Truncate the file to `num_bytes`. Durable only after `sync`."""
        with self._named_errors():
            os.ftruncate(self._descriptor, num_bytes)

    def sync(self) -> None:
        """Make all bytes written so far durable, not the file's name."""
        with self._named_errors():
            os.fsync(self._descriptor)

    def drop_cache(self) -> None:
        """Drop the file's pages from the page cache, so that a later read comes from the disk."""
        if sys.platform == "linux":
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        os.close(self._descriptor)

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Add the path to an OSError; calls on a descriptor do not name the file."""
        try:
            yield
        except OSError as error:
            error.filename = str(self.path)
            raise


def set_direct(descriptor: int, is_direct: bool) -> bool:
    """Set or clear O_DIRECT on an open file; returns whether it is set."""
    if sys.platform != "linux":
        return False
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL) & ~os.O_DIRECT
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | (os.O_DIRECT if is_direct else 0))
    except OSError:  # not supported by this file system
        return False
    return is_direct


def create(path: Path) -> OpenFile:
    """A new file to write to; an error if `path` exists. Nothing is durable yet."""
    return OpenFile(path, os.O_EXCL)


@contextlib.contextmanager
def create_durably(path: Path) -> Iterator[OpenFile]:
    """A new file to write to; an error if `path` exists.

    Its bytes are durable after the `with` block; its name only after `fsync_directory(path.parent)`.
    """
    file = create(path)
    try:
        yield file
        file.sync()
        file.drop_cache()
    finally:
        file.close()


def open_at_end(path: Path) -> OpenFile:
    """A file to append to; created if missing. Its name is durable, even if another process created it."""
    file = OpenFile(path, os.O_APPEND)
    fsync_directory(path.parent)
    return file


def write_file_durably(path: Path, data: Bytes) -> None:
    """Create `path` with `data`. The bytes are durable; the name only after `fsync_directory`."""
    with create_durably(path) as file:
        file.write(data)


def publish(path: Path, data: Bytes) -> None:
    """Replace the content of `path` by `data`, atomically and durably.

    The bytes are first written to `path` + `.tmp`; such a file left by a crash is replaced.
    """
    unfinished = path.with_name(path.name + ".tmp")
    remove_file(unfinished)
    write_file_durably(unfinished, data)
    replace_durably(unfinished, path)


def fsync_directory(path: Path) -> None:
    """Make the names in a directory durable (created, renamed, removed), not the files' bytes."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(descriptor)


def sync_tree(directory: Path) -> None:
    """Make every file and name in `directory` durable, and its own name."""
    for path in (directory.parent, directory, *sorted(directory.rglob("*"))):
        if path.is_dir():
            fsync_directory(path)
            continue
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def make_directory(path: Path) -> None:
    """Create `path` and its missing ancestors; no error if they exist. Their names are durable.

    An existing one is made durable too: its creator may have died before that.
    """
    if path.is_dir():
        with contextlib.suppress(PermissionError):  # not readable for this user, so not created by it
            fsync_directory(path.parent)
        return
    make_directory(path.parent)
    try:
        os.mkdir(path)
    except FileExistsError:
        if not path.is_dir():
            raise
    fsync_directory(path.parent)


def replace_durably(source: Path, target: Path) -> None:
    """Rename `source` to `target`, also into another directory, atomically and durably.

    The content of `source` must be durable already. A file at `target` is replaced; a directory that is not
    empty is an error.
    """
    os.replace(source, target)
    fsync_directory(target.parent)
    if source.parent != target.parent:
        fsync_directory(source.parent)


def link(source: Path, target: Path) -> None:
    """Create a hard link. Durable only after `fsync_directory(target.parent)`."""
    os.link(source, target, follow_symlinks=False)


def remove_file(path: Path) -> None:
    """Remove a file; no error if there is none. Durable only after `fsync_directory`."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def remove_tree(path: Path) -> None:
    """Remove a directory with everything in it, or a file; of a link only the link. Durable.

    It is renamed to `.trash` first, so that half a checkpoint is never seen under its own name. A crash may
    leave the `.trash` directory; call this function on it.
    """
    trash = path if path.name.endswith(TRASH_SUFFIX) else path.with_name(path.name + TRASH_SUFFIX)
    if os.path.lexists(trash):
        fsync_directory(trash.parent)  # or a power cut could restore the old name, with files missing
        _remove(trash)
    if trash != path:
        replace_durably(path, trash)
        _remove(trash)


def num_free_bytes(path: Path) -> int:
    """Free bytes for an unprivileged user on the file system of `path`."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def _remove(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        os.unlink(path)
        return
    for child in sorted(path.iterdir()):
        _remove(child)
    os.rmdir(path)


_COPY_BYTES = 8 << 20

_NO_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS)
"""Errors that mean: these two names cannot be hard links."""


def link_files(source: Path, target: Path) -> None:
    """Copy the files of a directory, not its subdirectories, as hard links where possible."""
    make_directory(target)
    for path in sorted(source.iterdir()):
        if path.is_file():
            link_or_copy(path, target / path.name)
    fsync_directory(target)


def copy_tree(source: Path, target: Path) -> None:
    """Copy a directory with everything in it. Durable."""
    make_directory(target)
    for path in sorted(source.iterdir()):
        if path.is_dir():
            copy_tree(path, target / path.name)
        else:
            _copy(path, target / path.name)
    fsync_directory(target)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file to a name that does not exist yet. Durable."""
    _copy(source, target)
    fsync_directory(target.parent)


def link_or_copy(source: Path, target: Path) -> bool:
    """Create a hard link, or a copy where that is impossible; says whether it is a link.

    Durable only after `fsync_directory(target.parent)`.
    """
    try:
        link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        _copy(source, target)
        return False
    return True


def _copy(source: Path, target: Path) -> None:
    """The bytes are durable, the name is not."""
    with source.open("rb") as old, create_durably(target) as new:
        while block := old.read(_COPY_BYTES):
            new.write(block)
