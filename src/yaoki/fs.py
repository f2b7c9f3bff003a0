"""The only place that changes files of a run: each write, fsync, rename, link and unlink. No torch.

Each function says what is durable, that is, survives a power cut, once it has returned. An OSError
from here names its path. Effects go through the module `os` alone, one call for each, so whoever replaces
`os` in here sees every effect and can break it. It knows nothing of what the files hold.
"""

import contextlib
import errno
import fcntl
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from yaoki import fs

TRASH_SUFFIX = ".trash"
"""Ends the name of a directory whose removal has begun; what is in there is lost already."""

ALIGNMENT_BYTES = 4096
"""Direct writes want their memory, their length and their place in the file at multiples of this."""

Bytes = bytes | memoryview


class OpenFile:
    """A file that is being written, from its beginning or at its end."""

    def __init__(self, path: Path, flags: int) -> None:
        self.path = path
        self._is_direct = False
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | flags, 0o644)

    def write_directly(self) -> None:
        """Let writes go past the page cache where that is possible, else leave all as it is.

        For blocks that are aligned in memory; one whose length is no multiple of that must be the last.
        """
        self._is_direct = set_direct(self._descriptor, True)

    def write(self, data: Bytes) -> None:
        """All of `data`, however many calls the system needs for it. Durable only after `sync`."""
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
                    # A file system that says yes and does not mean it.
                    self._is_direct = set_direct(self._descriptor, False)

    def cut(self, num_bytes: int) -> None:
        """Drop what is after the first `num_bytes`. Durable only after `sync`."""
        with self._named_errors():
            os.ftruncate(self._descriptor, num_bytes)

    def sync(self) -> None:
        """Durable after it: all bytes so far, not the name."""
        with self._named_errors():
            os.fsync(self._descriptor)

    def forget_cached(self) -> None:
        """Let a later read ask the disk, not the cache that these writes have filled."""
        if sys.platform == "linux":
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        os.close(self._descriptor)

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        """The system says what failed on a descriptor, but not of which file."""
        try:
            yield
        except OSError as error:
            error.filename = str(self.path)
            raise


def set_direct(descriptor: int, is_direct: bool) -> bool:
    """Ask the system to go past the page cache with an open file, or not to; returns whether it will."""
    if sys.platform != "linux":
        return False
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL) & ~os.O_DIRECT
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | (os.O_DIRECT if is_direct else 0))
    except OSError:  # this file system cannot
        return False
    return is_direct


def create(path: Path) -> OpenFile:
    """A new file to write to; it is an error if `path` exists. Durable: nothing yet."""
    return OpenFile(path, os.O_EXCL)


@contextlib.contextmanager
def create_durably(path: Path) -> Iterator[OpenFile]:
    """A new file to write to; it is an error if `path` exists.

    Durable after the block: the file's bytes; its name only after `fsync_directory(path.parent)`.
    """
    file = create(path)
    try:
        yield file
        file.sync()
        file.forget_cached()
    finally:
        file.close()


def open_at_end(path: Path) -> OpenFile:
    """A file that grows; created if missing. Durable after it: its name, whoever created it."""
    file = OpenFile(path, os.O_APPEND)
    fsync_directory(path.parent)
    return file


def write_file_durably(path: Path, data: Bytes) -> None:
    """Create `path` with `data`. Durable after it: the bytes; the name after `fsync_directory`."""
    with create_durably(path) as file:
        file.write(data)


def publish(path: Path, data: Bytes) -> None:
    """Make `data` what `path` holds. Durable after it; until then the name is as it was.

    The bytes go to `path` + `.tmp` first; one that a crash has left there is replaced.
    """
    unfinished = path.with_name(path.name + ".tmp")
    remove_file(unfinished)
    write_file_durably(unfinished, data)
    replace_durably(unfinished, path)


def fsync_directory(path: Path) -> None:
    """Durable after it: the names in `path` (created, renamed, removed), not what they hold."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
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
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def make_directory(path: Path) -> None:
    """Create `path` and its missing ancestors; fine if they exist. Durable after it: their names.

    Also of one that exists: a process may have died between making it and making it durable.
    """
    if path.is_dir():
        with contextlib.suppress(PermissionError):  # somebody else's directory, which is no work of ours
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
    """Rename, also into another directory. Durable after it: `source` is gone and `target` is what it was.

    At any instant before that either both names are as they were or the rename has happened in
    full. What `source` holds must be durable already. A file at `target` is replaced; a directory
    that is not empty is an error.
    """
    os.replace(source, target)
    fsync_directory(target.parent)
    if source.parent != target.parent:
        fsync_directory(source.parent)


def link(source: Path, target: Path) -> None:
    """A second name for a file. Durable only after `fsync_directory(target.parent)`."""
    os.link(source, target, follow_symlinks=False)


def remove_file(path: Path) -> None:
    """Remove a file; fine if there is none. Durable only after `fsync_directory`: it may come back."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def remove_tree(path: Path) -> None:
    """Remove a directory and all in it, or a file. Durable after it: the name `path` is gone.

    Of a link only the link is removed.

    The rename to a `.trash` name comes first, so that nobody sees half a checkpoint under its own
    name. After a crash a `.trash` directory may be left; call this on it.
    """
    trash = path if path.name.endswith(TRASH_SUFFIX) else path.with_name(path.name + TRASH_SUFFIX)
    if os.path.lexists(trash):
        fsync_directory(trash.parent)  # or else, half emptied, it may come back under its proper name
        _remove(trash)
    if trash != path:
        replace_durably(path, trash)
        _remove(trash)


def num_free_bytes(path: Path) -> int:
    """Bytes that an unprivileged user can still write to the file system of `path`."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def _remove(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        os.unlink(path)
        return
    for child in sorted(path.iterdir()):
        _remove(child)
    os.rmdir(path)


_BLOCK_BYTES = 8 << 20


_NO_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS)
"""What a file system says that cannot link these two names."""


def link_files(source: Path, target: Path) -> None:
    """The files of a directory, not what is below it, as links where that is possible."""
    fs.make_directory(target)
    for path in sorted(source.iterdir()):
        if path.is_file():
            _link_or_copy(path, target / path.name)
    fs.fsync_directory(target)


def copy_tree(source: Path, target: Path) -> None:
    """A directory with all below it."""
    fs.make_directory(target)
    for path in sorted(source.iterdir()):
        if path.is_dir():
            copy_tree(path, target / path.name)
        else:
            _copy(path, target / path.name)
    fs.fsync_directory(target)


def copy_file(source: Path, target: Path) -> None:
    """One file, under a name that is still free."""
    _copy(source, target)
    fs.fsync_directory(target.parent)


def _link_or_copy(source: Path, target: Path) -> bool:
    try:
        fs.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        _copy(source, target)
        return False
    return True


def _copy(source: Path, target: Path) -> None:
    """Durable but for its name."""
    with source.open("rb") as old, fs.create_durably(target) as new:
        while block := old.read(_BLOCK_BYTES):
            new.write(block)
