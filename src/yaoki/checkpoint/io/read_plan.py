"""Plans which bytes of a checkpoint a rank reads, and where they go: into live tensors, or into new ones."""

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
    """This rank's rows of one tensor, while they are read."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.shard: LocalShard = local_shard_of(tensor)
        self._rows = local_tensor(tensor)
        is_dense = self._rows.is_contiguous()
        self.dense = self._rows if is_dense else torch.empty(self._rows.shape, dtype=self._rows.dtype)
        self._num_missing = self.dense.nbytes

    def received(self, num_bytes: int) -> None:
        """Record that `num_bytes` were written to `dense`; copy it to the live rows when it is complete."""
        self._num_missing -= num_bytes
        if not self._num_missing and self.dense is not self._rows:
            self._rows.copy_(self.dense)


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Bytes of a file that this rank needs."""

    begin: int
    """Offset in the file."""
    end: int
    target: Target
    target_begin: int
    """Offset in the bytes of the target."""


class ReadPlan:
    """The tensors that a checkpoint is read into."""

    def __init__(self, manifest: Manifest, live: Mapping[str, Tensors], rank: int) -> None:
        """`rank`: the saved rank whose per-rank parts are restored."""
        self._rank = rank
        self._live = live
        self._targets: dict[tuple[str, str], Target] = {}
        self._shapes = {
            (tensor.part, tensor.name): tensor.global_shape
            for tensor in manifest.tensors
            if tensor.rank in (None, rank)
        }

    def tensor(self, part: str, name: str) -> torch.Tensor:
        """The tensor that the rows of this name are read into."""
        return self._targets[part, name].tensor

    def byte_range(self, file: TensorFile, stored: StoredRows) -> ByteRange | None:
        """The bytes of stored rows that this rank holds; None if it holds none of them."""
        if file.is_per_rank and file.rank != self._rank:
            return None
        target = self._target(file.part, stored.tensor)
        shard, row_bytes = target.shard, target.shard.row_elements * stored.tensor.dtype.itemsize
        num_rows = stored.tensor.shape[0] if stored.tensor.shape else 1
        first = max(shard.first_row, stored.first_row)
        end = min(shard.first_row + shard.num_rows, stored.first_row + num_rows)
        if end <= first or not row_bytes:
            return None
        return ByteRange(
            stored.begin + (first - stored.first_row) * row_bytes,
            stored.begin + (end - stored.first_row) * row_bytes,
            target,
            (first - shard.first_row) * row_bytes,
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
    """Distributes the bytes of a file, or of spans of it, to the targets."""

    def __init__(self, path: Path, header: bytes, ranges: Sequence[ByteRange]) -> None:
        """`ranges`: what this rank needs, in file order."""
        self._path = path
        self._header = header
        self._ranges = ranges
        self._next = 0
        """The first range that is not complete."""

    def take(self, begin: int, view: memoryview) -> None:
        """Take the bytes at file offset `begin`.

        Raises:
            CorruptCheckpointError: the header differs from the one that follows from the manifest.
        """
        end = begin + len(view)
        expected = self._header[begin:end]
        if view[: len(expected)] != expected:
            raise CorruptCheckpointError(
                "its header does not describe the tensors that the manifest lists", path=self._path
            )
        while self._next < len(self._ranges):
            wanted = self._ranges[self._next]
            first, last = max(begin, wanted.begin), min(end, wanted.end)
            if last > first:
                _put(wanted, first - wanted.begin, view[first - begin : last - begin])
            if wanted.end > end:
                return
            self._next += 1


def _put(wanted: ByteRange, offset: int, source: memoryview) -> None:
    """Copy bytes to a range, at an offset in it."""
    dense, begin = wanted.target.dense, wanted.target_begin + offset
    if dense.device.type == "cpu":
        address = ctypes.addressof(ctypes.c_char.from_buffer(source))
        ctypes.memmove(dense.data_ptr() + begin, address, len(source))
    else:
        flat = dense.as_strided((dense.numel(),), (1,)).view(torch.uint8)
        flat[begin : begin + len(source)].copy_(torch.frombuffer(source, dtype=torch.uint8))
    wanted.target.received(len(source))
