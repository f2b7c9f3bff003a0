"""Writes one rank's files of a checkpoint, and returns their entries for the manifest.

Tensors are streamed, so a save needs memory for a few blocks only, however large the state.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from yaoki import fs
from yaoki.checkpoint.chunks import chunk_bytes_of
from yaoki.checkpoint.direct_io import DiskWriter
from yaoki.checkpoint.io.frozen import FrozenTensors, pieces_of
from yaoki.checkpoint.io.sharding import local_shard_of, writes_shard
from yaoki.checkpoint.io.snapshot import DTYPE_NAMES, PartState, Snapshot
from yaoki.checkpoint.io.tensor_file import StoredTensor, header, in_file_order
from yaoki.checkpoint.layout import STATE, part_file_name
from yaoki.checkpoint.manifest import FileEntry, Scope, ShardEntry, TensorEntry
from yaoki.errors import YaokiError
from yaoki.ranks.torch_internals import local_tensor
from yaoki.strict_json import JSON, FormatError, encode_state


@dataclass(frozen=True, slots=True)
class Receipt:
    """The manifest's entries of a file that is durable."""

    file: FileEntry
    tensors: tuple[TensorEntry, ...] = ()
    """Each with the shard in this file only."""


class PartFile:
    """The plan of one rank's tensor file of a part."""

    def __init__(self, part_name: str, part: PartState, rank: int, world_size: int) -> None:
        self.name = part_file_name(part_name, rank, world_size)
        self._part_name = part_name
        self._part = part
        self._world_size = world_size
        self.rarely_changes = part.rarely_changes
        self._owner = rank if part.scope is Scope.PER_RANK else None
        self._aliases = part.aliases
        self._tensors = {
            name: tensor
            for name, tensor in part.tensors.items()
            if part.scope is Scope.PER_RANK or writes_shard(tensor, rank)
        }
        self._order = in_file_order(
            StoredTensor(name, tensor.dtype, local_shard_of(tensor).shape)
            for name, tensor in self._tensors.items()
            if name not in self._aliases
        )
        self.header = header(self._order)

    @property
    def size_bytes(self) -> int:
        """Total file size."""
        return len(self.header) + sum(tensor.num_bytes for tensor in self._order)

    @property
    def chunk_bytes(self) -> int:
        """Size of the chunks that are digested."""
        return chunk_bytes_of(self.size_bytes * self._world_size)

    @property
    def has_tensors(self) -> bool:
        """False if this rank has no rows of any tensor, so that there is no file."""
        return bool(self._tensors)

    def pieces(self) -> list[torch.Tensor]:
        """The tensors after the header, in file order, as views that can be read."""
        return [
            piece for tensor in self._order for piece in pieces_of(local_tensor(self._tensors[tensor.name]))
        ]

    def tensor_entries(self) -> tuple[TensorEntry, ...]:
        """The manifest's entries of the tensors, each with the shard in this file."""
        return tuple(self._tensor_entry(name, tensor) for name, tensor in self._tensors.items())

    def _tensor_entry(self, name: str, tensor: torch.Tensor) -> TensorEntry:
        shard, alias_of = local_shard_of(tensor), self._aliases.get(name)
        shards = (ShardEntry(self.name, shard.offsets, shard.shape),) if alias_of is None else ()
        dtype = DTYPE_NAMES[tensor.dtype]
        return TensorEntry(self._part_name, name, self._owner, dtype, shard.global_shape, shards, alias_of)


@dataclass(frozen=True, slots=True)
class EarlierFiles:
    """The files of a verified checkpoint, which unchanged parts are linked to."""

    directory: Path
    by_name: Mapping[str, FileEntry]

    def find(self, file: PartFile) -> FileEntry | None:
        """The file that may have the same content, if the part rarely changes."""
        found = self.by_name.get(file.name)
        is_like_it = found is not None and found.size_bytes == file.size_bytes
        return found if file.rarely_changes and is_like_it else None


def plan(snapshot: Snapshot, rank: int, world_size: int) -> list[PartFile]:
    """The tensor files that a rank writes, in the order of the parts."""
    files = [PartFile(name, part, rank, world_size) for name, part in snapshot.parts.items() if part.tensors]
    return [file for file in files if file.has_tensors]


def write_parts(
    directory: Path,
    files: list[PartFile],
    frozen: FrozenTensors,
    disk: DiskWriter,
    earlier: EarlierFiles | None,
) -> list[Receipt]:
    """Write all tensor files to `directory`; if a part that rarely changes is unchanged, link its file
    instead.

    The bytes are durable, but not the files' names. The groups of `frozen` are named like the files.

    Raises:
        OSError: with the path.
    """
    receipts = []
    for file in files:
        entry = None if earlier is None else _link(directory, file, frozen, disk, earlier)
        entry = entry or _write(directory, file, frozen, disk)
        receipts.append(Receipt(entry, file.tensor_entries()))
    disk.wait()
    return receipts


def _write(directory: Path, file: PartFile, frozen: FrozenTensors, disk: DiskWriter) -> FileEntry:
    stream = disk.begin_file(directory / file.name, file.chunk_bytes)
    stream.put(file.header)
    frozen.take(file.name, stream)
    entry = stream.finish(file.name)
    disk.end_file()
    return entry


def _link(
    directory: Path, file: PartFile, frozen: FrozenTensors, disk: DiskWriter, earlier: EarlierFiles
) -> FileEntry | None:
    """Link the file if the earlier one has the same content; None if it must be written."""
    before = earlier.find(file)
    if before is None:
        return None
    digester = disk.digester(before.chunk_bytes)
    digester.put(file.header)
    frozen.read(file.name, digester)
    if digester.finish(file.name) != before:
        return None
    try:
        fs.link(earlier.directory / file.name, directory / file.name)
    except OSError:  # another file system, too many links, or links are not supported
        return None
    frozen.drop(file.name)
    return before


def state_of_rank(snapshot: Snapshot) -> dict[str, JSON]:
    """The JSON of the per-rank parts, by name.

    Raises:
        YaokiError: a value would change when it is read back from JSON.
    """
    return _json_of(snapshot, {Scope.PER_RANK})


def write_state(directory: Path, snapshot: Snapshot, of_ranks: Sequence[JSON]) -> Receipt:
    """Write the JSON of all parts: `{"shared": {part: value}, "per_rank": [{part: value}, ...]}`.

    The bytes are durable, but not the file's name.

    Args:
        of_ranks: the result of `state_of_rank` on each rank.

    Raises:
        YaokiError: a value would change when it is read back from JSON.
        OSError: with the path.
    """
    shared = _json_of(snapshot, {Scope.SHARDED, Scope.GLOBAL})
    data = encode_state({"shared": shared, "per_rank": list(of_ranks)})
    fs.write_file_durably(directory / STATE, data)
    return Receipt(FileEntry.of(STATE, data))


def _json_of(snapshot: Snapshot, scopes: Collection[Scope]) -> dict[str, JSON]:
    found: dict[str, JSON] = {}
    for name, part in snapshot.parts.items():
        if part.json is not None and part.scope in scopes:
            try:
                encode_state(part.json)
            except FormatError as error:
                raise YaokiError(f"the state of part {name!r} {error}") from error
            found[name] = part.json
    return found


def merged(entries: Iterable[TensorEntry]) -> tuple[TensorEntry, ...]:
    """One entry per tensor, with the shards of all ranks, in the order of the first entries."""
    by_tensor: dict[tuple[str, int | None, str], TensorEntry] = {}
    for entry in entries:
        key = (entry.part, entry.rank, entry.name)
        known = by_tensor.get(key)
        by_tensor[key] = entry if known is None else replace(known, shards=known.shards + entry.shards)
    return tuple(by_tensor.values())
