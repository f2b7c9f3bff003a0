"""The lock of a run's directory: one process trains there at a time."""

import contextlib
import fcntl
import os
import time
from pathlib import Path
from types import TracebackType

from yaoki import fs
from yaoki.errors import RefusedError

_LOCK_TRIES = 5


class RunLock:
    """A context manager that keeps a second process out; the system frees it when the holder dies."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1

    def __enter__(self) -> None:
        try:
            fs.make_directory(self._path.parent)
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise RefusedError(
                f"{self._path.parent} cannot be a run directory: {error.strerror}",
                hint="name another directory with --run",
            ) from error
        try:
            self._take()
        except OSError as error:
            holder = self._path.read_text("utf-8").strip() or "another process"
            os.close(self._descriptor)
            raise in_use(self._path.parent, holder) from error
        with contextlib.suppress(OSError):  # informational only; a full disk must not end a run
            os.truncate(self._descriptor, 0)
            os.write(self._descriptor, f"process {os.getpid()}\n".encode())

    def _take(self) -> None:
        """A few tries, because `status` holds the lock for an instant when it asks who has it."""
        for _ in range(_LOCK_TRIES - 1):
            with contextlib.suppress(OSError):
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            time.sleep(0.02)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)


def in_use(path: Path, holder: str) -> RefusedError:
    """The error for a run that another process trains."""
    hint = "wait for it or stop it, or name another directory with --run"
    return RefusedError(f"{path} is in use by {holder}", hint=hint)


def holder_of(path: Path) -> str | None:
    """The process that holds the lock, in words, or None. The file alone says nothing: it outlives its
    holder."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return path.read_text("utf-8").strip()
    finally:
        os.close(descriptor)
    return None
