"""Where the rows of a checkpoint go: into live tensors, or into new ones.

It knows which rows of each tensor this rank holds, and nothing of files.
"""

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from yaoki.checkpoint.io.sharding import LocalShard, local_shard_of
from yaoki.checkpoint.io.tensor_file import StoredRows, StoredTensor, TensorFile
from yaoki.checkpoint.manifest import Manifest
from yaoki.errors import CorruptCheckpointError
from yaoki.ranks.torch_internals import local_tensor

Tensors = Mapping[str, torch.Tensor]


class Target:
    """This rank's rows of one tensor, while they come in."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.box: LocalShard = local_shard_of(tensor)
        self._rows = local_tensor(tensor)
        is_dense = self._rows.is_contiguous()
        self.dense = self._rows if is_dense else torch.empty(self._rows.shape, dtype=self._rows.dtype)
        self._num_missing = self.dense.nbytes

    def received(self, num_bytes: int) -> None:
        """So many more bytes are in `dense`."""
        self._num_missing -= num_bytes
        if not self._num_missing and self.dense is not self._rows:
            self._rows.copy_(self.dense)


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Bytes of a file that are wanted here."""

    begin: int
    """Where in the file."""
    end: int
    target: Target
    target_begin: int
    """Where in the target's bytes they go."""


class ReadPlan:
    """All tensors that a checkpoint is read into."""

    def __init__(self, manifest: Manifest, live: Mapping[str, Tensors], rank: int) -> None:
        """`rank`: the one that stands in for this one where each rank has a part for itself."""
        self._rank = rank
        self._live = live
        self._targets: dict[tuple[str, str], Target] = {}
        self._shapes = {
            (tensor.part, tensor.name): tensor.global_shape
            for tensor in manifest.tensors
            if tensor.rank in (None, rank)
        }

    def tensor(self, part: str, name: str) -> torch.Tensor:
        """The tensor that the rows of that name went to."""
        return self._targets[part, name].tensor

    def piece(self, file: TensorFile, stored: StoredRows) -> ByteRange | None:
        """Which of these rows of a file are held here, and where they go; None: none of them."""
        if file.is_per_rank and file.rank != self._rank:
            return None
        target = self._target(file.part, stored.tensor)
        box, row_bytes = target.box, target.box.row_elements * stored.tensor.dtype.itemsize
        num_rows = stored.tensor.shape[0] if stored.tensor.shape else 1
        first = max(box.first_row, stored.first_row)
        end = min(box.first_row + box.num_rows, stored.first_row + num_rows)
        if end <= first or not row_bytes:
            return None
        return ByteRange(
            stored.begin + (first - stored.first_row) * row_bytes,
            stored.begin + (end - stored.first_row) * row_bytes,
            target,
            (first - box.first_row) * row_bytes,
        )

    def _target(self, part: str, stored: StoredTensor) -> Target:
        key = (part, stored.name)
        if key not in self._targets:
            live = self._live.get(part, {}).get(stored.name)
            if live is None:
                live = torch.empty(self._shapes[key], dtype=stored.dtype)
            self._targets[key] = Target(live)
        return self._targets[key]


class Scatter:
    """Takes a file, or spans of it, in its order."""

    def __init__(self, path: Path, header: bytes, pieces: Sequence[ByteRange]) -> None:
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
                "its header does not describe the tensors that the manifest lists", path=self._path
            )
        while self._next < len(self._pieces):
            piece = self._pieces[self._next]
            first, last = max(begin, piece.begin), min(end, piece.end)
            if last > first:
                _put(piece, first - piece.begin, view[first - begin : last - begin])
            if piece.end > end:
                return
            self._next += 1


def _put(piece: ByteRange, offset: int, source: memoryview) -> None:
    """Bytes of the wanted ones from `offset` on."""
    dense, begin = piece.target.dense, piece.target_begin + offset
    if dense.device.type == "cpu":
        address = ctypes.addressof(ctypes.c_char.from_buffer(source))
        ctypes.memmove(dense.data_ptr() + begin, address, len(source))
    else:
        flat = dense.as_strided((dense.numel(),), (1,)).view(torch.uint8)
        flat[begin : begin + len(source)].copy_(torch.frombuffer(source, dtype=torch.uint8))
    piece.target.received(len(source))
