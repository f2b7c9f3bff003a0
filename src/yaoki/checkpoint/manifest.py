"""The manifest: what a checkpoint consists of, in bytes of which none can change unseen. No torch.

A tensor is described by its global shape and, per shard, the offsets of that shard in it, so that any
number of ranks can find its slices later. Tied tensors are stored once; the other names are aliases.
It knows the form of this description, not whether the files agree with it.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import xxhash

from yaoki.checkpoint.canonical import JSON, FormatError, decode, encode, parse
from yaoki.checkpoint.layout import MANIFEST, STATE, file_rank, is_plain_name
from yaoki.errors import CorruptCheckpointError

FORMAT_VERSION = 1

_DIGEST = re.compile(r"[0-9a-f]{32}", re.ASCII)


class Scope(StrEnum):
    """How a part is spread over the ranks."""

    SHARDED = "sharded"
    """Each rank holds a slice of each tensor; together they are the part."""
    PER_RANK = "per_rank"
    """Each rank has a part of its own, such as its generators."""
    GLOBAL = "global"
    """Equal on all ranks, stored once."""


@dataclass(frozen=True, slots=True)
class PartEntry:
    """A named piece of the run's state."""

    name: str
    scope: Scope
    has_json: bool
    """True if the state file holds a value for it."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file of the checkpoint, other than the manifest."""

    name: str
    size_bytes: int
    xxh3_128: str
    """Of the whole file, 32 hexadecimal digits."""


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """A box of a tensor that lies in one file, under the tensor's own name."""

    file: str
    offsets: tuple[int, ...]
    """Position of the box's first element in the whole tensor, one per dimension."""
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor of a part. Exactly one of `shards` and `alias_of` says where its elements are."""

    part: str
    name: str
    rank: int | None
    """The owner, for a part of scope per_rank."""
    dtype: str
    """safetensors' word for it: F32, BF16, ..."""
    global_shape: tuple[int, ...]
    shards: tuple[ShardEntry, ...]
    alias_of: str | None
    """The tensor of the same part and rank whose memory this one shares."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """A checkpoint's table of contents and its place in the run."""

    format_version: int
    step: int
    created_unix_s: float
    attempt: int
    run_id: str
    parent: str | None
    """The checkpoint from which this attempt went on, if it did not start fresh."""
    config_digest: str
    dataset_digest: str
    environment: Mapping[str, bool | int | float | str | None]
    world_size: int
    parts: tuple[PartEntry, ...]
    files: tuple[FileEntry, ...]
    tensors: tuple[TensorEntry, ...]

    @property
    def size_bytes(self) -> int:
        """All listed files together; the manifest itself is not counted."""
        return sum(file.size_bytes for file in self.files)

    def files_of(self, rank: int) -> tuple[FileEntry, ...]:
        """What a rank has written: the files with its tensors; the first rank also the state."""
        return tuple(file for file in self.files if file_rank(file.name) == rank)

    def to_bytes(self) -> bytes:
        """Canonical JSON that contains a digest of itself; the inverse of `parse_manifest`.

        Raises:
            FormatError: a field has a value that the format does not allow.
        """
        _check(self)
        content = _fields(self)
        return encode(content | {"digest": _digest(content)})


def parse_manifest(data: bytes, path: str) -> Manifest:
    """The manifest from the bytes of its file.

    Args:
        path: of the file, for messages.

    Raises:
        CorruptCheckpointError: these are not, to the last byte, what `to_bytes` once gave.
    """
    try:
        content = parse(data)
        if not isinstance(content, dict):
            raise FormatError("not a JSON object")
        if encode(content) != data:
            raise FormatError("its bytes are not in canonical form")
        if content.pop("digest", None) != _digest(content):
            raise FormatError("its content does not match its own digest")
        _check_version(content)
        manifest = decode(Manifest, content, "manifest")
        _check(manifest)
    except FormatError as error:
        raise CorruptCheckpointError(f"{path}: {error}") from error
    return manifest


def _fields(manifest: Manifest) -> dict[str, object]:
    """As dicts and lists. Written out for tensors: there are thousands, and the interpreter is shared."""
    fields = {field.name: getattr(manifest, field.name) for field in dataclasses.fields(manifest)}
    for name in ("parts", "files"):
        fields[name] = [dataclasses.asdict(entry) for entry in fields[name]]
    fields["tensors"] = [
        {
            "part": tensor.part,
            "name": tensor.name,
            "rank": tensor.rank,
            "dtype": tensor.dtype,
            "global_shape": tensor.global_shape,
            "shards": [{"file": s.file, "offsets": s.offsets, "shape": s.shape} for s in tensor.shards],
            "alias_of": tensor.alias_of,
        }
        for tensor in manifest.tensors
    ]
    return fields


def _digest(content: Mapping[str, object]) -> str:
    return xxhash.xxh3_128_hexdigest(encode(content))


def _check_version(content: Mapping[str, JSON]) -> None:
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise FormatError(
            f"written in format version {version!r}, this Yaoki reads version {FORMAT_VERSION}; "
            "use the Yaoki that wrote it"
        )


def _check(manifest: Manifest) -> None:
    """The rules that types do not express."""
    for name in ("step", "attempt"):
        _require(getattr(manifest, name) >= 0, f"{name} is {getattr(manifest, name)}")
    _require(manifest.world_size >= 1, f"world_size is {manifest.world_size}")
    _unique("part", [part.name for part in manifest.parts])
    _unique("file", [file.name for file in manifest.files])
    for file in manifest.files:
        _require(is_plain_name(file.name), f"{file.name!r} is not a plain file name")
        _require(file.name != MANIFEST, "it lists itself")
        _require(file.size_bytes >= 0, f"{file.name} has size {file.size_bytes}")
        _require(_DIGEST.fullmatch(file.xxh3_128) is not None, f"{file.name} has no proper digest")
    files = {file.name for file in manifest.files}
    _require(STATE in files, f"it does not list {STATE}")
    _check_tensors(manifest, files)


def _check_tensors(manifest: Manifest, files: set[str]) -> None:
    scopes = {part.name: part.scope for part in manifest.parts}
    tensors = {(tensor.part, tensor.rank, tensor.name): tensor for tensor in manifest.tensors}
    _require(len(tensors) == len(manifest.tensors), "a tensor is listed twice")
    for (part, rank, name), tensor in tensors.items():
        where = f"tensor {name!r} of part {part!r}"
        _require(part in scopes, f"{where}: there is no such part")
        per_rank = scopes[part] is Scope.PER_RANK
        owned = rank is not None and 0 <= rank < manifest.world_size
        _require(owned if per_rank else rank is None, f"{where}: wrong rank {rank}")
        _require(all(size >= 0 for size in tensor.global_shape), f"{where}: negative size")
        if tensor.alias_of is None:
            _check_shards(tensor, files, where)
        else:
            target = tensors.get((part, rank, tensor.alias_of))
            _require(not tensor.shards, f"{where}: an alias with shards of its own")
            _require(
                target is not None
                and target.alias_of is None
                and (target.dtype, target.global_shape) == (tensor.dtype, tensor.global_shape),
                f"{where}: {tensor.alias_of!r} is not a stored tensor of its dtype and shape",
            )


def _check_shards(tensor: TensorEntry, files: set[str], where: str) -> None:
    """Each shard lies inside the tensor, and all shards together have its number of elements."""
    _require(bool(tensor.shards), f"{where}: it is stored nowhere")
    for shard in tensor.shards:
        _require(shard.file in files, f"{where}: {shard.file!r} is not a listed file")
        _require(
            len(shard.offsets) == len(shard.shape) == len(tensor.global_shape)
            and all(
                offset >= 0 and size >= 0 and offset + size <= whole
                for offset, size, whole in zip(shard.offsets, shard.shape, tensor.global_shape, strict=True)
            ),
            f"{where}: a shard lies outside of it",
        )
    stored = sum(math.prod(shard.shape) for shard in tensor.shards)
    _require(stored == math.prod(tensor.global_shape), f"{where}: its shards do not cover it")


def _unique(what: str, names: list[str]) -> None:
    for name, count in Counter(names).items():
        _require(count == 1, f"the {what} {name!r} is listed {count} times")


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise FormatError(problem)
