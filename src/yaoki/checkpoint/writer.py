"""Writes parts as files and gives a receipt for each: one rank's share of a checkpoint.

A tensor file is plain safetensors, with the header padded so that the data starts on a 4096-byte
boundary. Tensors go out one by one: beside the live state there is never more than one copy of one
tensor. It knows nothing of steps, manifests on disk or commits.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import xxhash

from yaoki import fs
from yaoki.checkpoint.canonical import JSON, FormatError, encode_state
from yaoki.checkpoint.layout import STATE, part_file_name
from yaoki.checkpoint.manifest import FileEntry, Scope, ShardEntry, TensorEntry
from yaoki.checkpoint.snapshot import DTYPE_NAMES, PartState, Snapshot
from yaoki.errors import YaokiError

ALIGNMENT_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Receipt:
    """Proof that a file is durable: what the manifest must say of it."""

    file: FileEntry
    tensors: tuple[TensorEntry, ...] = ()


def write_snapshot(directory: Path, snapshot: Snapshot, rank: int, world_size: int) -> list[Receipt]:
    """Write one rank's tensor files, in the order of the parts; parts without tensors have none.

    Raises:
        OSError: with the path.
    """
    return [
        write_part(directory, name, part, rank, world_size)
        for name, part in snapshot.parts.items()
        if part.tensors
    ]


def write_part(directory: Path, name: str, part: PartState, rank: int, world_size: int) -> Receipt:
    """Write one part's tensors to `directory`. Durable after it: the file's bytes, not yet its name.

    Raises:
        OSError: with the path.
    """
    aliases = part.aliases
    stored = {key: tensor for key, tensor in part.tensors.items() if key not in aliases}
    # Widest elements first, so that every tensor starts on a multiple of its element's size.
    order = sorted(stored, key=lambda key: (-stored[key].element_size(), key))
    header = _header({key: stored[key] for key in order})
    file_name = part_file_name(name, rank, world_size)
    with fs.create_durably(directory / file_name) as file:
        hashing = _HashingFile(file)
        hashing.write(header)
        for key in order:
            hashing.write(_bytes_of(stored[key]))
    owner = rank if part.scope is Scope.PER_RANK else None
    return Receipt(
        hashing.entry(file_name),
        tuple(
            _tensor_entry(name, key, tensor, owner, file_name, aliases.get(key))
            for key, tensor in part.tensors.items()
        ),
    )


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
    with fs.create_durably(directory / STATE) as file:
        hashing = _HashingFile(file)
        hashing.write(data)
    return Receipt(hashing.entry(STATE))


class _HashingFile:
    """Passes bytes on to a file, counts and digests them."""

    def __init__(self, file: fs.OpenFile) -> None:
        self._file = file
        self._digest = xxhash.xxh3_128()
        self._size_bytes = 0

    def write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._digest.update(data)
        self._size_bytes += len(data)

    def entry(self, name: str) -> FileEntry:
        return FileEntry(name, self._size_bytes, self._digest.hexdigest())


def _header(tensors: dict[str, torch.Tensor]) -> bytes:
    """safetensors' header for tensors that follow one another without gaps, with padding to the boundary."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        entries[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode("ascii")
    padded = -(-(8 + len(text)) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES - 8
    return padded.to_bytes(8, "little") + text.ljust(padded, b" ")


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """The elements in row-major order; a copy only if they are not on the CPU in that order already."""
    dense = tensor.detach().cpu().contiguous()
    flat = dense.as_strided((dense.numel(),), (1,))  # reshape may keep another stride for 0 or 1 elements
    return flat.view(torch.uint8).numpy().data


def _tensor_entry(
    part: str, name: str, tensor: torch.Tensor, rank: int | None, file: str, alias_of: str | None
) -> TensorEntry:
    shape = tuple(tensor.shape)
    shards = (ShardEntry(file, offsets=(0,) * len(shape), shape=shape),) if alias_of is None else ()
    return TensorEntry(part, name, rank, DTYPE_NAMES[tensor.dtype], shape, shards, alias_of)
