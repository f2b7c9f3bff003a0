"""The manifest of a checkpoint: its files, its tensors and its place in the run. No torch.

A tensor is described by its global shape and the offsets of each shard, so that any number of ranks can find
its rows later. Tied tensors are stored once; their other names are aliases. A change of any byte of the
manifest is detected; whether the files agree with it is checked in `verify`.
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
    """How a part is distributed over the ranks."""

    SHARDED = "sharded"
    """Each rank holds some rows of each tensor."""
    PER_RANK = "per_rank"
    """Each rank has a part of its own, such as the states of its random number generators."""
    GLOBAL = "global"
    """Equal on all ranks; stored once."""


@dataclass(frozen=True, slots=True)
class PartEntry:
    """A named part of the run's state."""

    name: str
    scope: Scope
    has_json: bool
    """Whether the state file has a value for it."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file of the checkpoint other than the manifest."""

    name: str
    size_bytes: int
    chunk_bytes: int
    """Chunk size, a power of two; the last chunk may be shorter."""
    xxh3_128: str
    """The digests of all chunks, 32 hexadecimal digits each, concatenated."""

    @classmethod
    def of(cls, name: str, data: bytes) -> "FileEntry":
        """The entry of a file with the content `data`."""
        chunk_bytes = chunk_bytes_of(len(data))
        return cls(name, len(data), chunk_bytes, hexdigests_of(data, chunk_bytes))

    def digests(self, first: int, number: int) -> str:
        """The digests of `number` chunks, from chunk `first` on."""
        return self.xxh3_128[first * DIGEST_CHARACTERS : (first + number) * DIGEST_CHARACTERS]

    @property
    def problem(self) -> str | None:
        """Why this entry is invalid; None if it is valid."""
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
    """A shard of a tensor, stored in one file under the tensor's name."""

    file: str
    offsets: tuple[int, ...]
    """Position of the shard's first element in the whole tensor, one number per dimension."""
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor of a part. Exactly one of `shards` and `alias_of` is given."""

    part: str
    name: str
    rank: int | None
    """The rank that owns it, if the part's scope is per_rank."""
    dtype: str
    """Name of the dtype in safetensors: F32, BF16, ..."""
    global_shape: tuple[int, ...]
    shards: tuple[ShardEntry, ...]
    alias_of: str | None
    """Name of the tensor of the same part and rank that shares its memory."""


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of manifest.json."""

    format_version: int
    step: int
    created_unix_s: float
    attempt: int
    run_id: str
    parent: str | None
    """The checkpoint that the attempt resumed from, if it did not start at step 0."""
    config_digest: str
    dataset_digest: str
    environment: Mapping[str, bool | int | float | str | None]
    world_size: int
    parts: tuple[PartEntry, ...]
    files: tuple[FileEntry, ...]
    tensors: tuple[TensorEntry, ...]

    @property
    def size_bytes(self) -> int:
        """Total size of the listed files, without the manifest."""
        return sum(file.size_bytes for file in self.files)

    def files_of(self, rank: int) -> tuple[FileEntry, ...]:
        """The files that a rank wrote: those with its tensors, and on rank 0 the state."""
        return tuple(file for file in self.files if file_rank(file.name) == rank)

    def to_bytes(self) -> bytes:
        """Canonical JSON, preceded by a digest of it; the inverse of `parse_manifest`.

        Raises:
            FormatError: a field has an invalid value.
        """
        body = encode(self)
        decode(Manifest, body)  # a value of a wrong type could be written, but not read
        _check(self)
        return _signed(body)


def parse_manifest(data: bytes, path: Path | str) -> Manifest:
    """Decode and check the bytes of a manifest.

    Args:
        path: path or URL of the file, for messages.

    Raises:
        CorruptCheckpointError: the bytes differ from what `to_bytes` returns for any manifest.
    """
    body = b"{" + data[_SIGNATURE_BYTES:]
    try:
        version = decode(_Version, data).format_version
        if version != FORMAT_VERSION:
            raise FormatError(
                f"written in format version {version}, this version of Yaoki reads version {FORMAT_VERSION}; "
                "use the version that wrote it"
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
    """The only key that a manifest of any format version has."""

    format_version: int


_SIGNATURE_BYTES = len(b'{"digest":"",') + DIGEST_CHARACTERS


def _signed(body: bytes) -> bytes:
    """Insert the digest of a JSON object into it, as its first key."""
    return b'{"digest":"%s",%s' % (xxhash.xxh3_128_hexdigest(body).encode("ascii"), body[1:])


def _is_hexadecimal(text: str) -> bool:
    """Whether a text, possibly of megabytes, has only lower-case hexadecimal digits."""
    try:
        return bytes.fromhex(text).hex() == text
    except ValueError:
        return False


def _check(manifest: Manifest) -> None:
    """FormatError if a rule is violated that the types do not express."""
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
    """Why a tensor's entry is invalid; None if it is valid. `target` is the tensor that it is an alias of."""
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
        return "it has both shards and alias_of"
    form = tensor.dtype, tensor.global_shape
    if target is None or target.alias_of is not None or (target.dtype, target.global_shape) != form:
        return f"{tensor.alias_of!r} is not a stored tensor of its dtype and shape"
    return None


def _problem_of_shards(tensor: TensorEntry, files: set[str]) -> str | None:
    """Each shard must lie inside the tensor, and together they must be its rows, each row once."""
    if not tensor.shards:
        return "it has neither shards nor alias_of"
    for shard in tensor.shards:
        if shard.file not in files:
            return f"{shard.file!r} is not a listed file"
        if not len(shard.offsets) == len(shard.shape) == len(tensor.global_shape):
            return "a shard lies outside the tensor"
        for offset, size, whole in zip(shard.offsets, shard.shape, tensor.global_shape, strict=True):
            if offset < 0 or size < 0 or offset + size > whole:
                return "a shard lies outside the tensor"
    if sum(math.prod(shard.shape) for shard in tensor.shards) != math.prod(tensor.global_shape):
        return "its shards do not cover it"
    num_rows = 0
    for first, size in sorted((shard.offsets[0], shard.shape[0]) for shard in tensor.shards if shard.shape):
        if first != num_rows:
            return "its shards overlap or leave a gap"
        num_rows += size
    return None


def _unique(what: str, names: list[str]) -> None:
    for name, count in Counter(names).items():
        _require(count == 1, f"the {what} {name!r} is listed {count} times")


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise FormatError(problem)
