"""Page-aligned blocks through which a checkpoint goes to the disk and comes from it. No torch.

Only from and to aligned memory can the disk work past the page cache: then what was just written is read
back from the disk, and nothing that training needs is driven out of the cache. The disk has a thread of
its own, so that it works while the caller digests and copies. It knows nothing of what the bytes mean.
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
"""Large, because for each block the disk's thread must get hold of the interpreter, which may be busy."""
NUM_BLOCKS = 2
"""One at the disk, one being filled or emptied. They are all that a save or a restore adds to memory."""

_HUGE_PAGE_BYTES = 2 << 20


def new_blocks() -> list[memoryview]:
    """Writable memory, each block at the beginning of a page; in huge pages where the system has them.

    A block in huge pages is one piece of physical memory, which the disk takes in far fewer requests:
    on a virtual disk reads were three times as fast. A page is taken when it is first touched.
    """
    memory = mmap.mmap(
        -1, NUM_BLOCKS * BLOCK_BYTES + _HUGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    )
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    aligned = memoryview(memory)[-address % _HUGE_PAGE_BYTES :]
    return [aligned[i * BLOCK_BYTES : (i + 1) * BLOCK_BYTES] for i in range(NUM_BLOCKS)]


class Digester:
    """Takes in the bytes of a file through blocks; counts and digests them, and passes the blocks on."""

    def __init__(
        self, take: Callable[[], memoryview], pass_on: Callable[[memoryview, int], None], chunk_bytes: int
    ) -> None:
        """`take` gives an empty block; `pass_on` takes it back with so many bytes in it."""
        self._take = take
        self._pass_on = pass_on
        self._chunk_bytes = chunk_bytes
        self._block = memoryview(b"")
        self._used_bytes = 0
        self._size_bytes = 0
        self._digests = ChunkDigester(chunk_bytes)

    def room(self) -> memoryview:
        """Where the next bytes go: at least one, at most a block. Follow it with `advance`."""
        if self._used_bytes == len(self._block):
            self._empty()
            self._block = self._take()
        return self._block[self._used_bytes :]

    def advance(self, num_bytes: int) -> None:
        """So many bytes have been put into the room."""
        self._used_bytes += num_bytes

    def put(self, data: bytes) -> None:
        """Take in bytes that are at hand."""
        left = memoryview(data)
        while left:
            room = self.room()[: len(left)]
            room[:] = left[: len(room)]
            self.advance(len(room))
            left = left[len(room) :]

    def finish(self, name: str) -> FileEntry:
        """All bytes are in: what a manifest says of them."""
        self._empty()
        return FileEntry(name, self._size_bytes, self._chunk_bytes, self._digests.hexdigests())

    def _empty(self) -> None:
        if self._used_bytes:
            self._digests.update(self._block[: self._used_bytes])
            self._size_bytes += self._used_bytes
            self._pass_on(self._block, self._used_bytes)
        self._block, self._used_bytes = memoryview(b""), 0


class DiskWriter:
    """Makes files, one after another, on a thread of its own. A context manager.

    Once something has failed, everything after it fails with the same error.
    """

    def __init__(self, blocks: Sequence[memoryview], poll: Poll | None = None) -> None:
        """`poll` is called between blocks; what it raises ends the writing."""
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
        """A new file, made of the bytes that are put in until `end_file`; one at a time."""
        self._submit(partial(self._create, path))
        return Digester(self.take_block, self._write_block, chunk_bytes)

    def end_file(self) -> None:
        """All blocks of this file were passed on; it is made durable."""
        self._submit(self._sync)

    def digester(self, chunk_bytes: int) -> Digester:
        """One that only digests; between files."""
        return Digester(self.take_block, self._keep_block, chunk_bytes)

    def take_block(self) -> memoryview:
        """A block that may be filled; waits until its last bytes are on the disk."""
        if self._poll is not None:
            self._poll()
        block, written = self._blocks.popleft()
        if written is not None:
            written.result()
        return block

    def wait(self) -> None:
        """Until all is done. Durable after it: the bytes of every file, not yet their names.

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
        self._file.forget_cached()
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            file.close()


@contextlib.contextmanager
def reading(
    file: FileIO, blocks: Sequence[memoryview], spans: Iterable[tuple[int, int]]
) -> Iterator[Iterator[tuple[int, memoryview]]]:
    """The bytes of some spans of `file`, from begin to end, each beginning at a multiple of a page of 4 KiB.

    Gives (place in the file, view of at most a block); a view is good until the next one is asked for, and is
    shorter than it should be if the file is.

    They come from the disk, not from the page cache, where the system can do that. Some blocks are read
    ahead; do not use any of `blocks` before the context is left.
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
    """A file that is read past the page cache, if that is possible."""

    def __init__(self, file: FileIO) -> None:
        self._descriptor = file.fileno()
        self._is_direct = fs.set_direct(self._descriptor, True)

    def fill(self, block: memoryview, begin: int, num_bytes: int) -> int:
        """Read so many bytes from `begin` on; less only at the end of the file."""
        size = fs.ALIGNMENT_BYTES
        room = block[: -(-num_bytes // size) * size]  # of less a disk does not know
        num_read = 0
        while num_read < num_bytes:
            try:
                num_more = os.preadv(self._descriptor, [room[num_read:]], begin + num_read)
            except OSError as error:
                if error.errno != errno.EINVAL or not self._is_direct:
                    raise
                # Behind an end of the file that is no multiple of a page; or it was never possible.
                self._is_direct = fs.set_direct(self._descriptor, False)
                continue
            if not num_more:
                break
            num_read += num_more
        return min(num_read, num_bytes)
