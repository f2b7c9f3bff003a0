"""Replaces calls of `os` in the modules that do I/O, and makes their blocks small."""

import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from yaoki import fs
from yaoki.checkpoint import direct_io

BLOCK_BYTES = 8192


class FaultyOs:
    """The module `os` with some functions replaced, given by name."""

    def __init__(self, **calls: Callable[..., Any]) -> None:
        self._calls = calls

    def __getattr__(self, name: str) -> Any:
        return self._calls.get(name) or getattr(os, name)


def replace_os(patch: pytest.MonkeyPatch, **calls: Callable[..., Any]) -> None:
    patch.setattr(fs, "os", FaultyOs(**calls))


def use_small_blocks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(direct_io, "BLOCK_BYTES", BLOCK_BYTES)


@contextmanager
def counted_reads() -> Iterator[list[int]]:
    """The number of bytes that each read of a tensor file returned."""
    sizes: list[int] = []

    def counted(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        sizes.append(os.preadv(descriptor, buffers, offset))
        return sizes[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(direct_io, "os", FaultyOs(preadv=counted))
        yield sizes


def is_direct(descriptor: int) -> bool:
    return bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & getattr(os, "O_DIRECT", 0))


def can_be_direct(directory: Path) -> bool:
    """Whether the file system accepts O_DIRECT."""
    with (directory / "probe").open("wb") as file:
        return fs.set_direct(file.fileno(), True)


class Gate:
    """Blocks every write from the nth on, until it is opened."""

    def __init__(self, num_free_writes: int = 0) -> None:
        self._num_free = num_free_writes
        self._open = threading.Event()
        self.reached = threading.Event()
        """Set when a write is blocked for the first time."""

    def open(self) -> None:
        self._open.set()

    def write(self, descriptor: int, data: memoryview) -> int:
        """Replaces `os.write`."""
        if self._num_free > 0:
            self._num_free -= 1
        else:
            self.reached.set()
            assert self._open.wait(60), "the gate was not opened within 60 s"
        return os.write(descriptor, data)
