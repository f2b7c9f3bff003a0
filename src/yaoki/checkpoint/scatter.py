"""Puts the bytes of a tensor file where they belong: as they come, or only those that are wanted.

It knows which bytes to expect; whether they are the right ones, their digest says at the end.
"""

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from yaoki.checkpoint.files import open_regular
from yaoki.checkpoint.landing import Piece
from yaoki.checkpoint.stored_files import TensorFile
from yaoki.errors import CorruptCheckpointError


class Scatter:
    """Takes a file from its first byte to its last."""

    def __init__(self, path: Path, header: bytes, pieces: Sequence[Piece]) -> None:
        """`pieces`: what follows the header, in the order of the file."""
        self._path = path
        self._header = header
        self._num_header_bytes = 0
        self._pieces = iter([piece for piece in pieces if piece.num_bytes])
        self._piece = next(self._pieces, None)
        self._num_taken = 0
        """Of the piece at hand."""

    def take(self, view: memoryview) -> None:
        """The next bytes of the file.

        Raises:
            CorruptCheckpointError: the header is not the one that the tensors should have.
        """
        left = self._take_header(view)
        while left and self._piece is not None:
            given = left[: self._piece.num_bytes - self._num_taken]
            _take_part(self._piece, self._num_taken, given)
            self._num_taken += len(given)
            left = left[len(given) :]
            if self._num_taken == self._piece.num_bytes:
                self._piece, self._num_taken = next(self._pieces, None), 0

    def _take_header(self, view: memoryview) -> memoryview:
        """Returns what comes after the header."""
        expected = self._header[self._num_header_bytes :][: len(view)]
        if view[: len(expected)] != expected:
            raise CorruptCheckpointError(
                f"{self._path}: its header does not describe the tensors that the manifest lists"
            )
        self._num_header_bytes += len(expected)
        return view[len(expected) :]


def read_rows(file: TensorFile, pieces: Sequence[Piece]) -> int:
    """Read only what is wanted of a file that another rank verifies; returns the number of bytes.

    Raises:
        CorruptCheckpointError: the file ends too early or cannot be read.
    """
    num_read = 0
    wanted = [piece for piece in pieces if piece.target is not None]
    if not wanted:
        return 0
    with open_regular(file.path) as opened:
        for piece in wanted:
            assert piece.target is not None
            data = bytearray(piece.take_bytes)
            if _read_at(opened.fileno(), memoryview(data), piece.begin) != len(data):
                raise CorruptCheckpointError(f"{file.path}: it ends before {piece.begin + len(data)} bytes")
            _put(piece, 0, memoryview(data))
            num_read += len(data)
    return num_read


def _read_at(descriptor: int, target: memoryview, begin: int) -> int:
    """As many bytes as there are; the system gives at most 2 GiB at once."""
    num_bytes = 0
    while num_bytes < len(target):
        num_read = os.preadv(descriptor, [target[num_bytes:]], begin + num_bytes)
        if not num_read:
            break
        num_bytes += num_read
    return num_bytes


def _take_part(piece: Piece, num_before: int, given: memoryview) -> None:
    """Of the bytes of a piece from `num_before` on, put those that are wanted."""
    begin = max(0, piece.skip_bytes - num_before)
    end = piece.skip_bytes + piece.take_bytes - num_before
    wanted = given[begin : max(begin, end)]
    if piece.target is not None and wanted:
        _put(piece, num_before + begin - piece.skip_bytes, wanted)


def _put(piece: Piece, offset: int, source: memoryview) -> None:
    """Bytes of the wanted ones from `offset` on."""
    assert piece.target is not None
    dense, begin = piece.target.dense, piece.target_begin + offset
    if dense.device.type == "cpu":
        address = ctypes.addressof(ctypes.c_char.from_buffer(source))
        ctypes.memmove(dense.data_ptr() + begin, address, len(source))
    else:
        flat = dense.as_strided((dense.numel(),), (1,)).view(torch.uint8)
        flat[begin : begin + len(source)].copy_(torch.frombuffer(source, dtype=torch.uint8))
    piece.target.received(len(source))
