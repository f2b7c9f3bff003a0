"""Stands in for `os` inside `yaoki.fs`: sees every effect on files, in order, and can break one of them.

An effect is named by what it does, to which path, and how many effects of this kind on this path came before
it; so its name is the same in every run, whatever order threads come in. Calls that only look are passed
through; a call that is in neither list is an error, so no new kind of effect can go unseen.
"""

import fcntl
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .effects import ERRNO, TAKES_SPACE, Effect, Entry, Fault

_LOOKS = {
    "close",
    "fspath",
    "fstat",
    "getpid",
    "listdir",
    "lseek",
    "lstat",
    "posix_fadvise",
    "scandir",
    "stat",
    "statvfs",
}
_DIRECT_IO_BLOCK_BYTES = 4096


class Recorder:
    """Put it where `yaoki.fs` has its `os`. Everything passes through, one effect at a time."""

    def __init__(
        self,
        root: Path,
        *,
        strike: tuple[Effect, Fault] | None = None,
        on_strike: Callable[[], None] | None = None,
        after_each: Callable[[Entry], None] | None = None,
        really_syncs: bool = False,
    ) -> None:
        """`root`: the folder that paths are relative to. `strike`: which effect suffers what.

        `after_each` is called after every effect and promise, while nothing else happens.
        `really_syncs`: only a disk that can lose power needs it; for all else the record is enough.
        """
        self._root = root
        self._really_syncs = really_syncs
        self._strike = strike
        self._on_strike = on_strike
        self._after_each = after_each
        self._lock = threading.RLock()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._paths: dict[int, str] = {}
        self._lasting: Fault | None = None
        self.log: list[Entry] = []

    def __getattr__(self, name: str) -> Any:
        value = getattr(os, name)
        if callable(value) and name not in _LOOKS:
            raise AssertionError(f"os.{name}: the recorder does not know whether it changes files")
        return value

    def promise(self, what: str) -> None:
        """The program has acknowledged something: from now on it may not be lost."""
        with self._lock:
            self._happened(Entry(Effect("promise", what, 0), promise=what))

    def open(self, path: Path, flags: int, mode: int = 0o777) -> int:
        def call() -> int:
            descriptor = os.open(path, flags, mode)
            self._paths[descriptor] = self._relative(path)
            return descriptor

        with self._lock:
            if not flags & (os.O_WRONLY | os.O_RDWR):
                return call()
            assert not flags & os.O_TRUNC, "the model of the disk does not know O_TRUNC"
            return int(self._effect("open", path, call))

    def mkdir(self, path: Path, mode: int = 0o777) -> None:
        self._effect("mkdir", path, lambda: os.mkdir(path, mode))

    def rmdir(self, path: Path) -> None:
        self._effect("rmdir", path, lambda: os.rmdir(path))

    def unlink(self, path: Path) -> None:
        self._effect("unlink", path, lambda: os.unlink(path))

    def replace(self, source: Path, target: Path) -> None:
        self._effect("replace", source, lambda: os.replace(source, target), target=self._relative(target))

    def link(self, source: Path, target: Path, *, follow_symlinks: bool = True) -> None:
        self._effect(
            "link",
            source,
            lambda: os.link(source, target, follow_symlinks=follow_symlinks),
            target=self._relative(target),
        )

    def fsync(self, descriptor: int) -> None:
        self._effect("fsync", descriptor, lambda: os.fsync(descriptor) if self._really_syncs else None)

    def fdatasync(self, descriptor: int) -> None:
        self._effect(
            "fdatasync", descriptor, lambda: os.fdatasync(descriptor) if self._really_syncs else None
        )

    def ftruncate(self, descriptor: int, length: int) -> None:
        self._effect("ftruncate", descriptor, lambda: os.ftruncate(descriptor, length), offset=length)

    def truncate(self, descriptor: int, length: int) -> None:
        self.ftruncate(descriptor, length)

    def posix_fallocate(self, descriptor: int, offset: int, length: int) -> None:
        self._effect("posix_fallocate", descriptor, lambda: os.posix_fallocate(descriptor, offset, length))

    def write(self, descriptor: int, data: bytes | memoryview) -> int:
        status = os.fstat(descriptor)
        appends = _flags(descriptor) & os.O_APPEND
        offset = status.st_size if appends else os.lseek(descriptor, 0, os.SEEK_CUR)
        kind = "write_direct" if _is_direct(descriptor) else "write"
        return self._write(kind, descriptor, data, offset, lambda part: os.write(descriptor, part))

    def pwrite(self, descriptor: int, data: bytes | memoryview, offset: int) -> int:
        return self._write(
            "pwrite", descriptor, data, offset, lambda part: os.pwrite(descriptor, part, offset)
        )

    def _write(
        self,
        kind: str,
        descriptor: int,
        data: bytes | memoryview,
        offset: int,
        call: Callable[[memoryview], int],
    ) -> int:
        view = memoryview(data).cast("B")
        half = view[: _half(descriptor, len(view))]
        return int(
            self._effect(kind, descriptor, lambda: call(view), lambda: call(half), data=view, offset=offset)
        )

    def _effect(
        self,
        kind: str,
        where: Path | int,
        call: Callable[[], Any],
        call_half: Callable[[], int] | None = None,
        *,
        data: memoryview | None = None,
        offset: int = 0,
        target: str = "",
    ) -> Any:
        with self._lock:
            path = self._paths[where] if isinstance(where, int) else self._relative(where)
            effect = Effect(kind, path, self._counts[kind, path])
            self._counts[kind, path] += 1
            fault = self._fault(effect)
            if fault is Fault.DIE_BEFORE:
                _die()
            try:
                result = self._call(fault, call, call_half)
            except OSError as error:
                if not isinstance(where, int) and error.filename is None:
                    error.filename = str(where)
                raise
            written = b"" if data is None else bytes(data[:result])
            self._happened(Entry(effect, written, offset, target))
            if fault in (Fault.DIE_AFTER, Fault.DIE_WITHIN):
                _die()
            return result

    def _call(self, fault: Fault | None, call: Callable[[], Any], call_half: Callable[[], int] | None) -> Any:
        """The system's answer, or an error, or (a write) half of it."""
        if fault is not None and call_half is not None:
            is_first = self._lasting is not Fault.NO_SPACE
            if fault in (Fault.DIE_WITHIN, Fault.SHORT) or (fault is Fault.NO_SPACE and is_first):
                self._lasting = fault if fault.is_error else None
                return call_half()
        if fault in ERRNO:
            self._lasting = fault if fault in (Fault.NO_SPACE, Fault.READ_ONLY) else None
            raise OSError(ERRNO[fault], os.strerror(ERRNO[fault]))
        return call()

    def _happened(self, entry: Entry) -> None:
        self.log.append(entry)
        if self._after_each is not None:
            self._after_each(entry)

    def _fault(self, effect: Effect) -> Fault | None:
        if self._strike is not None and effect == self._strike[0]:
            if self._on_strike is not None:
                self._on_strike()
            return self._strike[1]
        if self._lasting is Fault.NO_SPACE and effect.kind not in TAKES_SPACE:
            return None
        return self._lasting

    def _relative(self, path: Path | str) -> str:
        return os.path.relpath(path, self._root)


def _flags(descriptor: int) -> int:
    return fcntl.fcntl(descriptor, fcntl.F_GETFL)


def _is_direct(descriptor: int) -> bool:
    return bool(_flags(descriptor) & getattr(os, "O_DIRECT", 0))


def _half(descriptor: int, num_bytes: int) -> int:
    """Half of the bytes, at least one; of direct writes whole blocks, as the system does it."""
    half = max(num_bytes // 2, 1)
    if _is_direct(descriptor):
        return max(half // _DIRECT_IO_BLOCK_BYTES, 1) * _DIRECT_IO_BLOCK_BYTES
    return half


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    threading.Event().wait()
