"""Puts the bytes of a tensor file where they belong, as they come: straight into tensors, view after view.

It knows which bytes to expect; whether they are the right ones, their digest says at the end.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch

from yaoki.errors import CorruptCheckpointError


class Scatter:
    """Takes a file from its first byte to its last."""

    def __init__(self, path: Path, header: bytes, targets: Sequence[torch.Tensor]) -> None:
        """`targets`: the tensors that follow the header, in the order of the file."""
        self._path = path
        self._header = header
        self._num_header_bytes = 0
        self._targets = iter([_Target(tensor) for tensor in targets if tensor.numel()])
        self._target = next(self._targets, None)

    def take(self, view: memoryview) -> None:
        """The next bytes of the file.

        Raises:
            CorruptCheckpointError: the header is not the one that the tensors should have.
        """
        left = self._take_header(view)
        while left and self._target is not None:
            num_taken = self._target.take(left)
            left = left[num_taken:]
            if self._target.is_full:
                self._target.finish()
                self._target = next(self._targets, None)

    def _take_header(self, view: memoryview) -> memoryview:
        """Returns what comes after the header."""
        expected = self._header[self._num_header_bytes :][: len(view)]
        if view[: len(expected)] != expected:
            raise CorruptCheckpointError(
                f"{self._path}: its header does not describe the tensors that the manifest lists"
            )
        self._num_header_bytes += len(expected)
        return view[len(expected) :]


class _Target:
    """A tensor that is being filled, row by row."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor.detach()
        self._dense = (
            self._tensor if tensor.is_contiguous() else torch.empty(tensor.shape, dtype=tensor.dtype)
        )
        self._num_taken = 0

    @property
    def is_full(self) -> bool:
        return self._num_taken == self._dense.nbytes

    def take(self, view: memoryview) -> int:
        """Take as many bytes as fit; returns their number."""
        source = view[: self._dense.nbytes - self._num_taken]
        begin = self._num_taken
        self._num_taken += len(source)
        if self._dense.device.type == "cpu":
            address = ctypes.addressof(ctypes.c_char.from_buffer(source))
            ctypes.memmove(self._dense.data_ptr() + begin, address, len(source))
        else:
            flat = self._dense.as_strided((self._dense.numel(),), (1,)).view(torch.uint8)
            flat[begin : self._num_taken].copy_(torch.frombuffer(source, dtype=torch.uint8))
        return len(source)

    def finish(self) -> None:
        """All bytes are there."""
        if self._dense is not self._tensor:
            self._tensor.copy_(self._dense)
