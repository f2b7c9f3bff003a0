"""Puts the bytes of a tensor file where they belong, as they come.

It knows which bytes to expect; whether they are the right ones, their digests say at the end.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch

from yaoki.checkpoint.landing import Piece
from yaoki.errors import CorruptCheckpointError


class Scatter:
    """Takes a file, or spans of it, in its order."""

    def __init__(self, path: Path, header: bytes, pieces: Sequence[Piece]) -> None:
        """`pieces`: what is wanted of it, in its order."""
        self._path = path
        self._header = header
        self._pieces = pieces
        self._next = 0
        """The first piece that has not been taken whole."""

    def take(self, begin: int, view: memoryview) -> None:
        """The bytes of the file from `begin` on.

        Raises:
            CorruptCheckpointError: the header is not the one that the tensors should have.
        """
        end = begin + len(view)
        expected = self._header[begin:end]
        if view[: len(expected)] != expected:
            raise CorruptCheckpointError(
                f"{self._path}: its header does not describe the tensors that the manifest lists"
            )
        while self._next < len(self._pieces):
            piece = self._pieces[self._next]
            first, last = max(begin, piece.begin), min(end, piece.end)
            if last > first:
                _put(piece, first - piece.begin, view[first - begin : last - begin])
            if piece.end > end:
                return
            self._next += 1


def _put(piece: Piece, offset: int, source: memoryview) -> None:
    """Bytes of the wanted ones from `offset` on."""
    dense, begin = piece.target.dense, piece.target_begin + offset
    if dense.device.type == "cpu":
        address = ctypes.addressof(ctypes.c_char.from_buffer(source))
        ctypes.memmove(dense.data_ptr() + begin, address, len(source))
    else:
        flat = dense.as_strided((dense.numel(),), (1,)).view(torch.uint8)
        flat[begin : begin + len(source)].copy_(torch.frombuffer(source, dtype=torch.uint8))
    piece.target.received(len(source))
