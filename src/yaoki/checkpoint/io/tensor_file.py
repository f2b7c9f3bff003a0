"""The layout of a tensor file: safetensors, with a header that follows from the tensors in it.

So a reader that knows the tensors from the manifest knows every byte of the header before reading it, and
need not trust any.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from yaoki.checkpoint.io.snapshot import DTYPE_NAMES
from yaoki.checkpoint.layout import STATE, file_rank, plain_child
from yaoki.checkpoint.manifest import FileEntry, Manifest, ShardEntry, TensorEntry
from yaoki.checkpoint.verify import check_size
from yaoki.errors import CorruptCheckpointError

ALIGNMENT_BYTES = 4096
"""The header is padded so that the data begins at a multiple of this."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor, or the shard of one, in a file."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Size of its elements in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def in_file_order(tensors: Iterable[StoredTensor]) -> list[StoredTensor]:
    """Widest elements first, so that each tensor begins at a multiple of its element size; then by name."""
    return sorted(tensors, key=lambda tensor: (-tensor.dtype.itemsize, tensor.name))


def header(tensors: Iterable[StoredTensor]) -> bytes:
    """The safetensors header of tensors that are stored without gaps, padded to the alignment."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        begin, end = end, end + tensor.num_bytes
        entries[tensor.name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode("ascii")
    padded = -(-(8 + len(text)) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES - 8
    return padded.to_bytes(8, "little") + text.ljust(padded, b" ")


@dataclass(frozen=True, slots=True)
class StoredRows:
    """Rows of a tensor in a file."""

    tensor: StoredTensor
    first_row: int
    begin: int
    """Offset in the file, in bytes."""


@dataclass(frozen=True, slots=True)
class TensorFile:
    """A file with one rank's tensors of a part."""

    path: Path
    entry: FileEntry
    part: str
    rank: int
    """The rank that wrote it."""
    is_per_rank: bool
    """Whether each rank has a part of its own."""
    header: bytes
    order: list[StoredRows]
    """The rows after the header, without gaps."""


def tensor_files(directory: Path, manifest: Manifest, parts: Sequence[str]) -> list[TensorFile]:
    """The files of the given parts, in the order of the parts.

    Raises:
        CorruptCheckpointError: the manifest contradicts itself or the files' sizes.
    """
    by_file: dict[str, list[tuple[TensorEntry, ShardEntry]]] = {}
    for tensor in manifest.tensors:
        for shard in tensor.shards:
            by_file.setdefault(shard.file, []).append((tensor, shard))
    for file in manifest.files:
        if file.name != STATE and file.name not in by_file:
            raise CorruptCheckpointError("no tensor is listed in it", path=plain_child(directory, file.name))
    found = []
    for part in parts:
        for file in manifest.files:
            shards = [pair for pair in by_file.get(file.name, ()) if pair[0].part == part]
            if shards:
                found.append(_tensor_file(plain_child(directory, file.name), file, part, shards))
    return found


def _tensor_file(
    path: Path, file: FileEntry, part: str, shards: Sequence[tuple[TensorEntry, ShardEntry]]
) -> TensorFile:
    dtypes = {name: dtype for dtype, name in DTYPE_NAMES.items()}
    first_rows = {}
    for tensor, shard in shards:
        if tensor.dtype not in dtypes:
            raise CorruptCheckpointError(f"{tensor.name} has the unknown dtype {tensor.dtype!r}", path=path)
        if tensor.rank not in (None, file_rank(file.name)):
            raise CorruptCheckpointError(f"{tensor.name} belongs to rank {tensor.rank}", path=path)
        if shard.shape[1:] != tensor.global_shape[1:] or tensor.name in first_rows:
            raise CorruptCheckpointError(f"{tensor.name} is not stored by rows", path=path)
        first_rows[tensor.name] = shard.offsets[0] if shard.offsets else 0
    order = in_file_order(
        StoredTensor(tensor.name, dtypes[tensor.dtype], shard.shape) for tensor, shard in shards
    )
    text = header(order)
    rows, end = [], len(text)
    for stored in order:
        rows.append(StoredRows(stored, first_rows[stored.name], end))
        end += stored.num_bytes
    if end != file.size_bytes:
        raise CorruptCheckpointError(
            f"the tensors that the manifest lists need {end} bytes, "
            f"but it says that the file has {file.size_bytes}",
            path=path,
        )
    check_size(path, file)
    return TensorFile(path, file, part, file_rank(file.name), shards[0][0].rank is not None, text, rows)
