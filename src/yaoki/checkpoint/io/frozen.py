"""The tensors of a snapshot while they are written: live ones until the frozen window ends, copies after it.

The writer reads on its thread; training says on its own thread when the tensors are about to change.
It knows nothing of files.
"""

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from threading import Condition

import torch

from yaoki.checkpoint.direct_io import BLOCK_BYTES, Digester
from yaoki.checkpoint.io.snapshot import version_of
from yaoki.errors import YaokiError


class FrozenTensors:
    """Gives the bytes of tensors as they were when the source was made.

    That holds if nothing writes to a tensor before `release` has returned; if torch does, `read` and `take`
    raise YaokiError. One thread reads: it says once
    what (`begin`), then reads group after group, and closes. Another one releases.
    """

    def __init__(self) -> None:
        self._changed = Condition()
        self._unread: dict[tuple[str, int], torch.Tensor] | None = None
        """By group and number; None until it is known what will be read."""
        self._num_unread_bytes = 0
        self._versions: dict[tuple[str, int], int] = {}
        """torch's count of writes to each, as it was when reading began."""
        self._check: Callable[[], None] | None = None
        self._is_released = False
        self._is_closed = False
        self._cuda = _CudaCopier() if torch.cuda.is_initialized() else None

    def begin(
        self, groups: Mapping[str, Sequence[torch.Tensor]], check: Callable[[], None] | None = None
    ) -> None:
        """These will be read; a tensor that is not contiguous in pieces, see `pieces_of`.

        `check` is called while nobody can release, now and after each group that was read before the release;
        what it raises comes through.
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
        """Put the bytes of a group, row by row, into a digester; they will be read once more."""
        for key in self._keys(group):
            self._read(key, digester)
        self._check_again()

    def take(self, group: str, digester: Digester) -> None:
        """Put the bytes of a group, row by row, into a digester; they will not be read again."""
        keys = self._keys(group)
        for key in keys:
            self._read(key, digester)
            if key != keys[-1]:
                self._forget(key)
        self._check_again()
        for key in keys[-1:]:
            self._forget(key)

    def forget(self, group: str) -> None:
        """A group will not be read any more."""
        for key in self._keys(group):
            self._forget(key)

    def close(self) -> None:
        """Nothing will be read any more, be it that all was read or that something went wrong."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def release(self, copy_bytes: int) -> bool:
        """Wait until at most `copy_bytes` are unread, copy them; then the tensors may change.

        Returns:
            False if reading has ended before everything was read.
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
        """For tensors that are spread: what torch does to their rows is counted on the whole only."""
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
            # May wait for the disk, which must not hold up `release`.
            room = digester.room()[: num_bytes - begin]
            with self._changed:
                self._copy(self._unread[key], begin, room)
                if not self._is_released and version_of(self._unread[key]) != self._versions[key]:
                    raise written_to(key[0])
            digester.advance(len(room))
            begin += len(room)

    def _forget(self, key: tuple[str, int]) -> None:
        with self._changed:
            assert self._unread is not None
            self._num_unread_bytes -= self._unread.pop(key).nbytes
            self._changed.notify_all()

    def _copy(self, piece: torch.Tensor, begin: int, room: memoryview) -> None:
        """The bytes of a piece from `begin` on into `room`, which is as long as that or shorter.

        A plain memmove, not torch's copy_: both let go of the interpreter, but from this thread copy_ would
        start a second team of OpenMP threads, which spin on the cores that training computes on.
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
    """Views that follow one another row by row: the tensor itself, or small ones if it is not contiguous.

    Small, because what is not contiguous is copied first.
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
    """The error of a snapshot that is no longer what it was."""
    return YaokiError(
        f"{what}: a tensor was written to between two updates, while a checkpoint of it was being made",
        hint="nothing may change weights or moments before `release`; that checkpoint was given up",
    )


def pin(blocks: Sequence[memoryview]) -> None:
    """Let CUDA copy straight into the blocks; without it the copies are right but slow."""
    if torch.cuda.is_initialized():
        for block in blocks:
            address = ctypes.addressof(ctypes.c_char.from_buffer(block))
            torch.cuda.cudart().cudaHostRegister(address, len(block), 0)


def _copy_of(piece: torch.Tensor) -> torch.Tensor:
    return piece.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


class _CudaCopier:
    """Copies from the current device on a stream of its own, beside what is computed there."""

    def __init__(self) -> None:
        self._ready = torch.cuda.Event()
        self._ready.record()  # behind the update whose results are to be copied
        self._stream = torch.cuda.Stream()
        self._stream.wait_event(self._ready)

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Has happened in full when it returns: the bytes may be digested."""
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
        self._stream.synchronize()
