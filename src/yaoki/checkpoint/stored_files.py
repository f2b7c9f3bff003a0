"""The tensor files of a checkpoint as its manifest describes them: every byte but the elements.

It compares the manifest with itself and with the sizes of the files; nothing is read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from yaoki.checkpoint.files import check_size
from yaoki.checkpoint.layout import STATE, file_rank, plain_child
from yaoki.checkpoint.manifest import FileEntry, Manifest, ShardEntry, TensorEntry
from yaoki.checkpoint.snapshot import DTYPE_NAMES
from yaoki.checkpoint.tensor_file import StoredTensor, header, in_file_order
from yaoki.errors import CorruptCheckpointError


@dataclass(frozen=True, slots=True)
class StoredRows:
    """Rows of a tensor in a file."""

    tensor: StoredTensor
    first_row: int
    begin: int
    """Where they begin, in bytes from the beginning of the file."""


@dataclass(frozen=True, slots=True)
class TensorFile:
    """A file with tensors of one part."""

    path: Path
    entry: FileEntry
    part: str
    rank: int
    """Who has written it."""
    is_per_rank: bool
    """The part is one that each rank has for itself."""
    header: bytes
    order: list[StoredRows]
    """What follows the header, without gaps."""


def tensor_files(directory: Path, manifest: Manifest, parts: Sequence[str]) -> list[TensorFile]:
    """The files of some parts, in the order of the parts.

    Raises:
        CorruptCheckpointError: the manifest contradicts itself or the files' sizes.
    """
    by_file: dict[str, list[tuple[TensorEntry, ShardEntry]]] = {}
    for tensor in manifest.tensors:
        for shard in tensor.shards:
            by_file.setdefault(shard.file, []).append((tensor, shard))
    for file in manifest.files:
        if file.name != STATE and file.name not in by_file:
            raise CorruptCheckpointError(f"{plain_child(directory, file.name)}: no tensor lies in it")
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
            raise CorruptCheckpointError(f"{path}: {tensor.name} has the unknown dtype {tensor.dtype!r}")
        if tensor.rank not in (None, file_rank(file.name)):
            raise CorruptCheckpointError(f"{path}: {tensor.name} belongs to rank {tensor.rank}")
        if shard.shape[1:] != tensor.global_shape[1:] or tensor.name in first_rows:
            raise CorruptCheckpointError(f"{path}: {tensor.name} is not stored by rows")
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
            f"{path}: the tensors that the manifest lists need {end} bytes, "
            f"it also says that the file has {file.size_bytes}"
        )
    check_size(path, file)
    return TensorFile(path, file, part, file_rank(file.name), shards[0][0].rank is not None, text, rows)
