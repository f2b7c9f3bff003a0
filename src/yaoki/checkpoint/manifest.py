"""The manifest: what a checkpoint consists of, in bytes of which none can change unseen. No torch.

A tensor is described by its global shape and, per shard, the offsets of that shard in it, so that any
number of ranks can find its slices later. Tied tensors are stored once; the other names are aliases.
It knows the form of this description, not whether the files agree with it.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import xxhash
from pydantic import ConfigDict, with_config

from yaoki.checkpoint.chunks import (
    DIGEST_CHARACTERS,
    MAX_CHUNK_BYTES,
    MIN_CHUNK_BYTES,
    chunk_bytes_of,
    hexdigests_of,
    num_chunks,
)
from yaoki.checkpoint.layout import MANIFEST, STATE, file_rank, is_plain_name
from yaoki.errors import CorruptCheckpointError
from yaoki.strict_json import FormatError, decode, encode

FORMAT_VERSION = 3


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
    chunk_bytes: int
    """A power of two; the last chunk may be shorter."""
    xxh3_128: str
    """Of each chunk, 32 hexadecimal digits each, one after another."""

    @classmethod
    def of(cls, name: str, data: bytes) -> "FileEntry":
        """What is to be said of a file that holds `data`."""
        chunk_bytes = chunk_bytes_of(len(data))
        return cls(name, len(data), chunk_bytes, hexdigests_of(data, chunk_bytes))

    def digests(self, first: int, number: int) -> str:
        """Of so many chunks from one on."""
        return self.xxh3_128[first * DIGEST_CHARACTERS : (first + number) * DIGEST_CHARACTERS]

    @property
    def problem(self) -> str | None:
        """What is wrong with it in itself."""
        if not is_plain_name(self.name):
            return "is not a plain file name"
        if self.name == MANIFEST:
            return "is the manifest itself"
        if self.size_bytes < 0:
            return f"has size {self.size_bytes}"
        is_power_of_two = self.chunk_bytes > 0 and self.chunk_bytes & (self.chunk_bytes - 1) == 0
        if not is_power_of_two or not MIN_CHUNK_BYTES <= self.chunk_bytes <= MAX_CHUNK_BYTES:
            return f"has chunks of {self.chunk_bytes} bytes"
        num_characters = num_chunks(self.size_bytes, self.chunk_bytes) * DIGEST_CHARACTERS
        if len(self.xxh3_128) != num_characters or not _is_hexadecimal(self.xxh3_128):
            return "has no proper digests"
        return None


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


@with_config(ConfigDict(extra="forbid"))
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
        """Canonical JSON that begins with a digest of all else in it; the inverse of `parse_manifest`.

        Raises:
            FormatError: a field has a value that the format does not allow.
        """
        body = encode(self)
        decode(Manifest, body)  # or else it could be written, but never be read
        _check(self)
        return _signed(body)


def parse_manifest(data: bytes, path: Path | str) -> Manifest:
    """The manifest from the bytes of its file.

    Args:
        path: of the file, for messages.

    Raises:
        CorruptCheckpointError: these are not, to the last byte, what `to_bytes` once gave.
    """
    body = b"{" + data[_SIGNATURE_BYTES:]
    try:
        version = decode(_Version, data).format_version
        if version != FORMAT_VERSION:
            raise FormatError(
                f"written in format version {version}, this Yaoki reads version {FORMAT_VERSION}; "
                "use the Yaoki that wrote it"
            )
        _require(_signed(body) == data, "its content does not match its own digest")
        manifest = decode(Manifest, body)
        _check(manifest)
        _require(
            encode(manifest) == body,
            "its JSON is not canonical: sorted keys, none of them twice, no spaces",
        )
    except FormatError as error:
        raise CorruptCheckpointError(str(error), path=path) from error
    return manifest


@dataclass(frozen=True, slots=True)
class _Version:
    """The one key that a manifest of any version has."""

    format_version: int


_SIGNATURE_BYTES = len(b'{"digest":"",') + DIGEST_CHARACTERS


def _signed(body: bytes) -> bytes:
    """A JSON object with a digest of its bytes as an additional first key."""
    return b'{"digest":"%s",%s' % (xxhash.xxh3_128_hexdigest(body).encode("ascii"), body[1:])


def _is_hexadecimal(text: str) -> bool:
    """Lower case and nothing else; there may be megabytes."""
    try:
        return bytes.fromhex(text).hex() == text
    except ValueError:
        return False


def _check(manifest: Manifest) -> None:
    """The rules that types do not express."""
    for name in ("step", "attempt"):
        _require(getattr(manifest, name) >= 0, f"{name} is {getattr(manifest, name)}")
    _require(manifest.world_size >= 1, f"world_size is {manifest.world_size}")
    _unique("part", [part.name for part in manifest.parts])
    _unique("file", [file.name for file in manifest.files])
    for file in manifest.files:
        if file.problem is not None:
            raise FormatError(f"{file.name!r} {file.problem}")
    files = {file.name for file in manifest.files}
    _require(STATE in files, f"it does not list {STATE}")
    _check_tensors(manifest, files)


def _check_tensors(manifest: Manifest, files: set[str]) -> None:
    scopes = {part.name: part.scope for part in manifest.parts}
    tensors = {(tensor.part, tensor.rank, tensor.name): tensor for tensor in manifest.tensors}
    _require(len(tensors) == len(manifest.tensors), "a tensor is listed twice")
    for (part, rank, name), tensor in tensors.items():
        target = None if tensor.alias_of is None else tensors.get((part, rank, tensor.alias_of))
        if problem := _problem(tensor, manifest.world_size, scopes.get(part), files, target):
            raise FormatError(f"tensor {name!r} of part {part!r}: {problem}")


def _problem(
    tensor: TensorEntry, world_size: int, scope: Scope | None, files: set[str], target: TensorEntry | None
) -> str | None:
    """What is wrong with it; `target` is what it is an alias of."""
    if scope is None:
        return "there is no such part"
    owned = tensor.rank is not None and 0 <= tensor.rank < world_size
    if not (owned if scope is Scope.PER_RANK else tensor.rank is None):
        return f"wrong rank {tensor.rank}"
    if tensor.global_shape and min(tensor.global_shape) < 0:
        return "negative size"
    if tensor.alias_of is None:
        return _problem_of_shards(tensor, files)
    if tensor.shards:
        return "an alias with shards of its own"
    form = tensor.dtype, tensor.global_shape
    if target is None or target.alias_of is not None or (target.dtype, target.global_shape) != form:
        return f"{tensor.alias_of!r} is not a stored tensor of its dtype and shape"
    return None


def _problem_of_shards(tensor: TensorEntry, files: set[str]) -> str | None:
    """Each shard must lie inside the tensor, and all shards together are it, row after row."""
    if not tensor.shards:
        return "it is stored nowhere"
    for shard in tensor.shards:
        if shard.file not in files:
            return f"{shard.file!r} is not a listed file"
        if not len(shard.offsets) == len(shard.shape) == len(tensor.global_shape):
            return "a shard lies outside of it"
        for offset, size, whole in zip(shard.offsets, shard.shape, tensor.global_shape, strict=True):
            if offset < 0 or size < 0 or offset + size > whole:
                return "a shard lies outside of it"
    if sum(math.prod(shard.shape) for shard in tensor.shards) != math.prod(tensor.global_shape):
        return "its shards do not cover it"
    num_rows = 0
    for first, size in sorted((shard.offsets[0], shard.shape[0]) for shard in tensor.shards if shard.shape):
        if first != num_rows:
            return "its shards do not follow one another"
        num_rows += size
    return None


def _unique(what: str, names: list[str]) -> None:
    for name, count in Counter(names).items():
        _require(count == 1, f"the {what} {name!r} is listed {count} times")


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise FormatError(problem)
