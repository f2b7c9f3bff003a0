"""Writes parts as files and gives a receipt for each: one rank's share of a checkpoint.

Tensors are streamed: what a save adds to memory is a few blocks, however large the state. It knows nothing of
steps, manifests on disk or commits.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import xxhash

from yaoki import fs
from yaoki.checkpoint.blocks import DiskWriter
from yaoki.checkpoint.canonical import JSON, FormatError, encode_state
from yaoki.checkpoint.layout import STATE, part_file_name
from yaoki.checkpoint.manifest import FileEntry, Scope, ShardEntry, TensorEntry
from yaoki.checkpoint.snapshot import DTYPE_NAMES, PartState, Snapshot
from yaoki.checkpoint.source import TensorSource, pieces_of
from yaoki.checkpoint.tensor_file import StoredTensor, header, in_file_order
from yaoki.errors import YaokiError


@dataclass(frozen=True, slots=True)
class Receipt:
    """Proof that a file is durable: what the manifest must say of it."""

    file: FileEntry
    tensors: tuple[TensorEntry, ...] = ()


class PartFile:
    """The tensor file of one part on one rank, as it will be."""

    def __init__(self, part_name: str, part: PartState, rank: int, world_size: int) -> None:
        self.name = part_file_name(part_name, rank, world_size)
        self._part_name = part_name
        self._part = part
        self.rarely_changes = part.rarely_changes
        self._owner = rank if part.scope is Scope.PER_RANK else None
        self._aliases = part.aliases
        self._order = in_file_order(
            StoredTensor(name, tensor.dtype, tuple(tensor.shape))
            for name, tensor in part.tensors.items()
            if name not in self._aliases
        )
        self.header = header(self._order)

    @property
    def size_bytes(self) -> int:
        """Of the whole file."""
        return len(self.header) + sum(tensor.num_bytes for tensor in self._order)

    def pieces(self) -> list[torch.Tensor]:
        """What follows the header, in this order."""
        return [piece for tensor in self._order for piece in pieces_of(self._part.tensors[tensor.name])]

    def tensor_entries(self) -> tuple[TensorEntry, ...]:
        """What the manifest says of the part's tensors."""
        return tuple(self._tensor_entry(name, tensor) for name, tensor in self._part.tensors.items())

    def _tensor_entry(self, name: str, tensor: torch.Tensor) -> TensorEntry:
        shape = tuple(tensor.shape)
        alias_of = self._aliases.get(name)
        shards = (ShardEntry(self.name, (0,) * len(shape), shape),) if alias_of is None else ()
        dtype = DTYPE_NAMES[tensor.dtype]
        return TensorEntry(self._part_name, name, self._owner, dtype, shape, shards, alias_of)


@dataclass(frozen=True, slots=True)
class EarlierFiles:
    """Files of a verified checkpoint, to which an unchanged part may be linked."""

    directory: Path
    by_name: Mapping[str, FileEntry]

    def find(self, file: PartFile) -> FileEntry | None:
        """What may hold the same bytes as `file`, if that is a part that rarely changes."""
        found = self.by_name.get(file.name)
        is_like_it = found is not None and found.size_bytes == file.size_bytes
        return found if file.rarely_changes and is_like_it else None


def plan(snapshot: Snapshot, rank: int, world_size: int) -> list[PartFile]:
    """The tensor files of one rank, in the order of the parts; parts without tensors have none."""
    return [PartFile(name, part, rank, world_size) for name, part in snapshot.parts.items() if part.tensors]


def write_parts(
    directory: Path,
    files: list[PartFile],
    source: TensorSource,
    disk: DiskWriter,
    earlier: EarlierFiles | None,
) -> list[Receipt]:
    """Write all tensor files to `directory`; one that rarely changes, and has not, is linked instead.

    Durable after it: the files' bytes, not yet their names. `source` has each file's pieces under its name.

    Raises:
        OSError: with the path.
    """
    receipts = []
    for file in files:
        entry = None if earlier is None else _link(directory, file, source, disk, earlier)
        entry = entry or _write(directory, file, source, disk)
        receipts.append(Receipt(entry, file.tensor_entries()))
    disk.wait()
    return receipts


def _write(directory: Path, file: PartFile, source: TensorSource, disk: DiskWriter) -> FileEntry:
    stream = disk.begin_file(directory / file.name)
    stream.put(file.header)
    source.take(file.name, stream)
    entry = stream.finish(file.name)
    disk.end_file()
    return entry


def _link(
    directory: Path, file: PartFile, source: TensorSource, disk: DiskWriter, earlier: EarlierFiles
) -> FileEntry | None:
    """Link the file to the earlier one if that has the same bytes; None if it must be written."""
    before = earlier.find(file)
    if before is None:
        return None
    digester = disk.digester()
    digester.put(file.header)
    source.read(file.name, digester)
    if digester.finish(file.name) != before:
        return None
    try:
        fs.link(earlier.directory / file.name, directory / file.name)
    except OSError:  # another file system, too many links, no links at all: a copy is as good
        return None
    source.forget(file.name)
    return before


def write_state(directory: Path, snapshot: Snapshot) -> Receipt:
    """Write the JSON of all parts: `{"shared": {part: value}, "per_rank": [{part: value}, ...]}`.

    Durable after it: the file's bytes, not yet its name.

    Raises:
        YaokiError: a value would come back from JSON as another one.
        OSError: with the path.
    """
    shared: dict[str, JSON] = {}
    of_rank: dict[str, JSON] = {}
    for name, part in snapshot.parts.items():
        if part.json is not None:
            (of_rank if part.scope is Scope.PER_RANK else shared)[name] = part.json
            try:
                encode_state(part.json)
            except FormatError as error:
                raise YaokiError(f"the state of part {name!r} {error}") from error
    data = encode_state({"shared": shared, "per_rank": [of_rank]})
    fs.write_file_durably(directory / STATE, data)
    return Receipt(FileEntry(STATE, len(data), xxhash.xxh3_128_hexdigest(data)))
