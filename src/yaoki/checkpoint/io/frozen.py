"""The tensors of a snapshot while they are written: live ones until the frozen window ends, then copies.

The writing thread reads; the training thread calls `release` before it changes the tensors.
"""

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from threading import Condition

import torch

from yaoki.checkpoint.direct_io import BLOCK_BYTES, Digester
from yaoki.checkpoint.io.snapshot import version_of
from yaoki.errors import YaokiError


class FrozenTensors:
    """Reads the bytes of tensors as they were when this was created.

    Nothing may write to a tensor before `release` has returned; if torch does, `read` and `take` raise
    YaokiError. One thread reads: it calls `begin` once, reads group after group, and closes. Another thread
    releases.
    """

    def __init__(self) -> None:
        self._changed = Condition()
        self._unread: dict[tuple[str, int], torch.Tensor] | None = None
        """By group and index; None before `begin`."""
        self._num_unread_bytes = 0
        self._versions: dict[tuple[str, int], int] = {}
        """The version counter of each when reading began."""
        self._check: Callable[[], None] | None = None
        self._is_released = False
        self._is_closed = False
        self._cuda = _CudaCopier() if torch.cuda.is_initialized() else None

    def begin(
        self, groups: Mapping[str, Sequence[torch.Tensor]], check: Callable[[], None] | None = None
    ) -> None:
        """Declare what will be read.

        Args:
            groups: tensors by group; those that are not contiguous in pieces, see `pieces_of`.
            check: called now, and after each group that is read before the release, while `release` is
                blocked; raises if the tensors have changed.
        """
        with self._changed:
            self._check = check
            if check is not None:
                check()
            self._unread = {
                (name, i): piece for name, group in groups.items() for i, piece in enumerate(group)
            }
            self._num_unread_bytes = sum(piece.nbytes for piece in self._unread.values())
            self._versions = {key: version_of(piece) for key, piece in self._unread.items()}
            self._changed.notify_all()

    def read(self, group: str, digester: Digester) -> None:
        """Put the bytes of a group, row by row, into a digester, and keep the tensors to be read again."""
        for key in self._keys(group):
            self._read(key, digester)
        self._check_again()

    def take(self, group: str, digester: Digester) -> None:
        """Put the bytes of a group, row by row, into a digester, and drop the tensors."""
        keys = self._keys(group)
        for key in keys:
            self._read(key, digester)
            if key != keys[-1]:
                self._drop(key)
        self._check_again()
        for key in keys[-1:]:
            self._drop(key)

    def drop(self, group: str) -> None:
        """Drop the tensors of a group."""
        for key in self._keys(group):
            self._drop(key)

    def close(self) -> None:
        """End reading, after success or failure."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def release(self, copy_bytes: int) -> bool:
        """Wait until at most `copy_bytes` are unread and copy these; then the tensors may change.

        Returns:
            False if reading ended before everything was read.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._is_closed or (self._unread is not None and self._num_unread_bytes <= copy_bytes)
            )
            if self._is_closed or self._unread is None:
                return self._unread == {}
            if not self._is_released:
                self._unread = {key: _copy_of(piece) for key, piece in self._unread.items()}
                self._is_released = True
            return True

    def _check_again(self) -> None:
        """For sharded tensors: torch counts in-place writes to their rows on the whole tensor only."""
        with self._changed:
            if self._check is not None and not self._is_released:
                self._check()

    def _keys(self, group: str) -> list[tuple[str, int]]:
        assert self._unread is not None
        return [key for key in self._unread if key[0] == group]

    def _read(self, key: tuple[str, int], digester: Digester) -> None:
        assert self._unread is not None
        begin, num_bytes = 0, self._unread[key].nbytes
        while begin < num_bytes:
            # Outside the lock, because this may wait for the disk, which must not block `release`.
            room = digester.room()[: num_bytes - begin]
            with self._changed:
                self._copy(self._unread[key], begin, room)
                if not self._is_released and version_of(self._unread[key]) != self._versions[key]:
                    raise written_to(key[0])
            digester.advance(len(room))
            begin += len(room)

    def _drop(self, key: tuple[str, int]) -> None:
        with self._changed:
            assert self._unread is not None
            self._num_unread_bytes -= self._unread.pop(key).nbytes
            self._changed.notify_all()

    def _copy(self, piece: torch.Tensor, begin: int, room: memoryview) -> None:
        """Copy bytes of a piece, from `begin` on, to fill `room`.

        With memmove, not copy_: both release the GIL, but copy_ on this thread would start a second team of
        OpenMP threads, which spin on the cores that training uses.
        """
        dense = piece.detach().contiguous()
        if dense.device.type == "cpu":
            address = ctypes.addressof(ctypes.c_char.from_buffer(room))
            ctypes.memmove(address, dense.data_ptr() + begin, len(room))
            return
        flat = dense.as_strided((dense.numel(),), (1,)).view(torch.uint8)[begin : begin + len(room)]
        target = torch.frombuffer(room, dtype=torch.uint8)
        if self._cuda is None:
            target.copy_(flat)
        else:
            self._cuda.copy(flat, target)


def pieces_of(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Views that together are the tensor, row by row: itself, or small ones if it is not contiguous.

    Small, because a view that is not contiguous is copied before it is read.
    """
    if tensor.is_contiguous() or tensor.nbytes <= BLOCK_BYTES:
        yield tensor
    elif len(tensor) == 1:
        yield from pieces_of(tensor[0])
    else:
        num_rows = max(1, BLOCK_BYTES * len(tensor) // tensor.nbytes)
        for rows in tensor.split(num_rows):
            yield from pieces_of(rows)


def written_to(what: str) -> YaokiError:
    """The error that a tensor of a snapshot has changed."""
    return YaokiError(
        f"{what}: a tensor was written to between two updates, while a checkpoint of it was being written",
        hint="nothing may change weights or moments before `release`; this checkpoint was cancelled",
    )


def pin(blocks: Sequence[memoryview]) -> None:
    """Page-lock the blocks, so that CUDA copies into them directly; otherwise copies are correct but slow."""
    if torch.cuda.is_initialized():
        for block in blocks:
            address = ctypes.addressof(ctypes.c_char.from_buffer(block))
            torch.cuda.cudart().cudaHostRegister(address, len(block), 0)


def _copy_of(piece: torch.Tensor) -> torch.Tensor:
    return piece.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


class _CudaCopier:
    """Copies from the current device on a stream of its own, concurrently with computation."""

    def __init__(self) -> None:
        self._ready = torch.cuda.Event()
        self._ready.record()  # after the update whose results are copied
        self._stream = torch.cuda.Stream()
        self._stream.wait_event(self._ready)

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Copy and wait for the copy."""
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
        self._stream.synchronize()
