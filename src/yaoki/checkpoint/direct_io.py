"""Direct (O_DIRECT) checkpoint I/O through page-aligned buffers, on a thread of its own. No torch.

O_DIRECT bypasses the page cache: a file that was just written is read back from the disk itself, and nothing
that training needs is evicted. The thread overlaps I/O with the digesting and copying of the caller.
"""

import contextlib
import ctypes
import errno
import mmap
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from io import FileIO
from itertools import islice
from pathlib import Path
from types import TracebackType

from yaoki import fs
from yaoki.checkpoint.chunks import ChunkDigester
from yaoki.checkpoint.manifest import FileEntry
from yaoki.thread import SerialThread
from yaoki.types import Poll

BLOCK_BYTES = 8 << 20
"""Large, because the I/O thread needs the GIL once per block."""
NUM_BLOCKS = 2
"""One in use by the disk, one by the caller. A save or a restore needs no other memory for tensors."""

_HUGE_PAGE_BYTES = 2 << 20


def new_blocks() -> list[memoryview]:
    """Page-aligned buffers, in huge pages if available.

    A huge page is contiguous physical memory, so the disk needs far fewer requests: reads from a virtual disk
    were three times as fast. Pages are allocated when they are first touched.
    """
    memory = mmap.mmap(
        -1, NUM_BLOCKS * BLOCK_BYTES + _HUGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    )
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # a kernel without huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    aligned = memoryview(memory)[-address % _HUGE_PAGE_BYTES :]
    return [aligned[i * BLOCK_BYTES : (i + 1) * BLOCK_BYTES] for i in range(NUM_BLOCKS)]


class Digester:
    """Receives the bytes of a file in blocks, counts and digests them, and passes each full block on."""

    def __init__(
        self, take: Callable[[], memoryview], pass_on: Callable[[memoryview, int], None], chunk_bytes: int
    ) -> None:
        """`take` returns an empty block; `pass_on` receives it with the number of bytes in it."""
        self._take = take
        self._pass_on = pass_on
        self._chunk_bytes = chunk_bytes
        self._block = memoryview(b"")
        self._used_bytes = 0
        self._size_bytes = 0
        self._digests = ChunkDigester(chunk_bytes)

    def room(self) -> memoryview:
        """A view for the next bytes, of at least one byte and at most a block. Call `advance` afterwards."""
        if self._used_bytes == len(self._block):
            self._empty()
            self._block = self._take()
        return self._block[self._used_bytes :]

    def advance(self, num_bytes: int) -> None:
        """Record that `num_bytes` were written to the view that `room` returned."""
        self._used_bytes += num_bytes

    def put(self, data: bytes) -> None:
        """Copy bytes into the blocks."""
        left = memoryview(data)
        while left:
            room = self.room()[: len(left)]
            room[:] = left[: len(room)]
            self.advance(len(room))
            left = left[len(room) :]

    def finish(self, name: str) -> FileEntry:
        """Pass on the last block; returns the file's entry in the manifest."""
        self._empty()
        return FileEntry(name, self._size_bytes, self._chunk_bytes, self._digests.hexdigests())

    def _empty(self) -> None:
        if self._used_bytes:
            self._digests.update(self._block[: self._used_bytes])
            self._size_bytes += self._used_bytes
            self._pass_on(self._block, self._used_bytes)
        self._block, self._used_bytes = memoryview(b""), 0


class DiskWriter:
    """Writes files, one after another, on a thread of its own. A context manager.

    After a failure every later operation fails with the same error.
    """

    def __init__(self, blocks: Sequence[memoryview], poll: Poll | None = None) -> None:
        """`poll` is called before each block; what it raises ends the writing."""
        self._blocks: deque[tuple[memoryview, Future[None] | None]] = deque((block, None) for block in blocks)
        self._poll = poll
        self._worker = SerialThread("checkpoint disk")
        self._last: Future[None] | None = None
        self._file: fs.OpenFile | None = None
        self._error: OSError | None = None

    def __enter__(self) -> "DiskWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._worker.submit(self._close)
        self._worker.close()

    def begin_file(self, path: Path, chunk_bytes: int) -> Digester:
        """Create a file; bytes put into the returned digester until `end_file` are written to it."""
        self._submit(partial(self._create, path))
        return Digester(self.take_block, self._write_block, chunk_bytes)

    def end_file(self) -> None:
        """End the file, whose digester is finished, and make its bytes durable."""
        self._submit(self._sync)

    def digester(self, chunk_bytes: int) -> Digester:
        """A digester whose bytes are not written; only between files."""
        return Digester(self.take_block, self._keep_block, chunk_bytes)

    def take_block(self) -> memoryview:
        """A free block; waits until its previous bytes were written."""
        if self._poll is not None:
            self._poll()
        block, written = self._blocks.popleft()
        if written is not None:
            written.result()
        return block

    def wait(self) -> None:
        """Wait until everything is written. Then the bytes of all files are durable, but not their names.

        Raises:
            OSError: with the path.
        """
        if self._last is not None:
            self._last.result()

    def _write_block(self, block: memoryview, num_bytes: int) -> None:
        self._blocks.append((block, self._submit(partial(self._write, block[:num_bytes]))))

    def _keep_block(self, block: memoryview, _: int) -> None:
        self._blocks.append((block, None))

    def _submit(self, work: Callable[[], None]) -> Future[None]:
        self._last = self._worker.submit(partial(self._unless_failed, work))
        return self._last

    def _unless_failed(self, work: Callable[[], None]) -> None:
        if self._error is not None:
            raise self._error
        try:
            work()
        except OSError as error:
            self._error = error
            raise

    def _create(self, path: Path) -> None:
        self._file = fs.create(path)
        self._file.write_directly()

    def _write(self, data: memoryview) -> None:
        assert self._file is not None
        self._file.write(data)

    def _sync(self) -> None:
        assert self._file is not None
        self._file.sync()
        self._file.drop_cache()
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            file.close()


@contextlib.contextmanager
def reading(
    file: FileIO, blocks: Sequence[memoryview], spans: Iterable[tuple[int, int]]
) -> Iterator[Iterator[tuple[int, memoryview]]]:
    """Read spans (begin, end) of a file, each beginning at a multiple of 4 KiB.

    Yields (file offset, view of at most a block). A view is valid until the next one is requested, and
    shorter if the file ends early. Reads bypass the page cache if the file system supports that. Blocks are
    read ahead, so do not use `blocks` for anything else within the context.
    """
    direct = _Direct(file)
    worker = SerialThread("checkpoint reader")
    try:
        yield _views(direct, blocks, worker, spans)
    finally:
        worker.close()


def _views(
    direct: "_Direct", blocks: Sequence[memoryview], worker: SerialThread, spans: Iterable[tuple[int, int]]
) -> Iterator[tuple[int, memoryview]]:
    size = len(blocks[0])
    left = ((at, min(size, end - at)) for begin, end in spans for at in range(begin, end, size))
    ahead: deque[tuple[int, memoryview, Future[int]]] = deque()

    def read_ahead(block: memoryview) -> None:
        for begin, num_bytes in islice(left, 1):
            ahead.append((begin, block, worker.submit(partial(direct.fill, block, begin, num_bytes))))

    for block in blocks:
        read_ahead(block)
    while ahead:
        begin, block, filled = ahead.popleft()
        yield begin, block[: filled.result()]
        read_ahead(block)


class _Direct:
    """Positional reads from an open file, with O_DIRECT if possible."""

    def __init__(self, file: FileIO) -> None:
        self._descriptor = file.fileno()
        self._is_direct = fs.set_direct(self._descriptor, True)

    def fill(self, block: memoryview, begin: int, num_bytes: int) -> int:
        """Read `num_bytes` from offset `begin`; fewer only at the end of the file. Returns their number."""
        size = fs.ALIGNMENT_BYTES
        room = block[: -(-num_bytes // size) * size]  # O_DIRECT reads whole pages
        num_read = 0
        while num_read < num_bytes:
            try:
                num_more = os.preadv(self._descriptor, [room[num_read:]], begin + num_read)
            except OSError as error:
                if error.errno != errno.EINVAL or not self._is_direct:
                    raise
                # The file does not end at a page boundary, or its file system refuses O_DIRECT reads.
                self._is_direct = fs.set_direct(self._descriptor, False)
                continue
            if not num_more:
                break
            num_read += num_more
        return min(num_read, num_bytes)
