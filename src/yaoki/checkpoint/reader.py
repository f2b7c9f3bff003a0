"""Reads a checkpoint back: once, verifying what it copies, straight into live tensors where there are any.

Nothing live is touched before all of it is known to fit. It knows nothing of which checkpoint should be
read, nor of what the parts mean.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from yaoki.checkpoint.blocks import new_blocks
from yaoki.checkpoint.canonical import JSON, FormatError, parse
from yaoki.checkpoint.files import check_size, read_checked, read_small_checked
from yaoki.checkpoint.fit import form, form_of, require_parts, require_same_forms, require_same_ties
from yaoki.checkpoint.layout import STATE, plain_child
from yaoki.checkpoint.manifest import FileEntry, Manifest, Scope, TensorEntry
from yaoki.checkpoint.scatter import Scatter
from yaoki.checkpoint.snapshot import DTYPE_NAMES, PartState, tied
from yaoki.checkpoint.tensor_file import StoredTensor, header, in_file_order
from yaoki.checkpoint.verify import read_manifest
from yaoki.errors import CorruptCheckpointError, RefusedError

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class LoadedCheckpoint:
    """What a checkpoint holds."""

    path: Path
    manifest: Manifest
    parts: Mapping[str, PartState]
    """Of the tensors that were not given, tied ones are one and the same object."""


def load(
    directory: Path,
    expected_parts: Mapping[str, Scope] | None = None,
    *,
    verified: Manifest | None = None,
    only: Collection[str] | None = None,
) -> LoadedCheckpoint:
    """Read parts of a checkpoint into new tensors on the CPU.

    Args:
        directory: the committed checkpoint.
        expected_parts: name and scope of every part that the caller will restore; None: whatever is there.
        verified: its manifest, if the caller has read that already. All else is verified while it is read.
        only: names of the parts to read; None: all.

    Raises:
        CorruptCheckpointError: names the file and what is wrong with it.
        RefusedError: parts are missing, left over, or of another scope; or several ranks wrote it.
    """
    manifest = read_manifest(directory) if verified is None else verified
    if expected_parts is not None:
        require_parts(directory, manifest, expected_parts)
    return read_into(directory, manifest, {}, only=only)


def read_into(
    directory: Path,
    manifest: Manifest,
    targets: Mapping[str, Tensors],
    *,
    only: Collection[str] | None = None,
) -> LoadedCheckpoint:
    """Read a checkpoint once, from the disk, and verify it while its tensors are copied into `targets`.

    Names, shapes, dtypes, ties and sizes are compared first; until then nothing is touched. After a
    CorruptCheckpointError the targets may hold garbage: restore another checkpoint into them, or give up.

    Args:
        directory: the committed checkpoint.
        manifest: what `read_manifest` says of it.
        targets: by part, all of its live tensors by name. Other parts get new tensors on the CPU.
        only: names of the parts to read, the targets' among them; None: all.

    Raises:
        CorruptCheckpointError: a file is missing, or has not the size, digest or header that it should.
        RefusedError: the targets are not the tensors of their parts; or several ranks wrote it.
    """
    if manifest.world_size != 1:
        raise RefusedError(
            f"{directory} was written by {manifest.world_size} ranks; this version reads those of one",
            hint="resume it with a version of Yaoki that reads sharded checkpoints",
        )
    wanted = [part for part in manifest.parts if only is None or part.name in only]
    files = [file for part in wanted for file in _tensor_files(directory, manifest, part.name)]
    for part, live in targets.items():
        _require_fit(manifest, part, live)
    json = _read_state(directory, manifest)

    stored: dict[tuple[str, str], torch.Tensor] = {}
    blocks = new_blocks()
    for file in files:
        tensors = file.targets(targets.get(file.part, {}))
        read_checked(file.path, file.entry, blocks, Scatter(file.path, file.header, tensors).take)
        stored |= {(file.part, saved.name): tensor for saved, tensor in zip(file.order, tensors, strict=True)}
    parts = {}
    for part_entry in wanted:
        name = part_entry.name
        tensors_of = _all_names(manifest, name, stored, targets.get(name, {}))
        parts[name] = PartState(part_entry.scope, tensors_of, json.get(name))
    return LoadedCheckpoint(directory, manifest, parts)


def restore_into(live: Tensors, loaded: Tensors) -> None:
    """Copy every loaded tensor into the live one of its name, in place; first make sure that all fit.

    One that was read straight into the live one is there already.

    Raises:
        RefusedError: names are missing or left over, or shapes or dtypes differ. Nothing was copied.
    """
    require_same_forms(_forms(live), _forms(loaded))
    with torch.no_grad():
        for name, tensor in loaded.items():
            if live[name].data_ptr() != tensor.data_ptr():
                live[name].copy_(tensor)


@dataclass(frozen=True, slots=True)
class _TensorFile:
    """A file with tensors of one part, as the manifest describes it."""

    path: Path
    entry: FileEntry
    part: str
    order: list[StoredTensor]
    header: bytes

    def targets(self, live: Tensors) -> list[torch.Tensor]:
        """What each tensor of the file is read into: a live one, or a new one."""
        return [
            live[stored.name] if stored.name in live else torch.empty(stored.shape, dtype=stored.dtype)
            for stored in self.order
        ]


def _tensor_files(directory: Path, manifest: Manifest, part: str) -> list[_TensorFile]:
    """The files of a part, whose sizes have been checked; nothing of them is read."""
    by_file: dict[str, list[TensorEntry]] = {}
    for entry in manifest.tensors:
        for shard in entry.shards:
            if entry.part == part:
                by_file.setdefault(shard.file, []).append(entry)
    return [
        _tensor_file(plain_child(directory, file.name), file, part, by_file[file.name])
        for file in manifest.files
        if file.name in by_file
    ]


def _tensor_file(path: Path, file: FileEntry, part: str, entries: list[TensorEntry]) -> _TensorFile:
    dtypes = {name: dtype for dtype, name in DTYPE_NAMES.items()}
    for entry in entries:
        if entry.dtype not in dtypes:
            raise CorruptCheckpointError(f"{path}: {entry.name} has the unknown dtype {entry.dtype!r}")
        if len(entry.shards) != 1:
            raise CorruptCheckpointError(f"{path}: {entry.name} is stored in pieces, though by one rank")
    order = in_file_order(
        StoredTensor(entry.name, dtypes[entry.dtype], entry.global_shape) for entry in entries
    )
    text = header(order)
    needed_bytes = len(text) + sum(stored.num_bytes for stored in order)
    if needed_bytes != file.size_bytes:
        raise CorruptCheckpointError(
            f"{path}: the tensors that the manifest lists need {needed_bytes} bytes, "
            f"it also says that the file has {file.size_bytes}"
        )
    check_size(path, file)
    return _TensorFile(path, file, part, order, text)


def _require_fit(manifest: Manifest, part: str, live: Tensors) -> None:
    entries = [entry for entry in manifest.tensors if entry.part == part]
    require_same_forms(_forms(live), {entry.name: form(entry.dtype, entry.global_shape) for entry in entries})
    require_same_ties(
        tied(live), {entry.name: entry.alias_of for entry in entries if entry.alias_of is not None}
    )


def _forms(tensors: Tensors) -> dict[str, str]:
    return {name: form_of(tensor) for name, tensor in tensors.items()}


def _all_names(
    manifest: Manifest, part: str, stored: Mapping[tuple[str, str], torch.Tensor], live: Tensors
) -> dict[str, torch.Tensor]:
    """The part's tensors under all of their names, in the manifest's order."""
    tensors = {}
    for entry in manifest.tensors:
        if entry.part == part:
            original = stored[part, entry.name if entry.alias_of is None else entry.alias_of]
            tensors[entry.name] = live.get(entry.name, original)
            if tensors[entry.name].data_ptr() != original.data_ptr():
                with torch.no_grad():  # tied when it was saved, apart now
                    tensors[entry.name].copy_(original)
    return tensors


def _read_state(directory: Path, manifest: Manifest) -> dict[str, JSON]:
    """The JSON of each part that has one."""
    path = directory / STATE
    entry = next(file for file in manifest.files if file.name == STATE)
    try:
        match parse(read_small_checked(path, entry)):
            case {"shared": dict(shared), "per_rank": [dict(of_rank)]}:
                values = {**shared, **of_rank}
            case _:
                raise FormatError("not of the form that a checkpoint's state has")
    except FormatError as error:
        raise CorruptCheckpointError(f"{path}: {error}") from error
    if sorted(values) != sorted(part.name for part in manifest.parts if part.has_json):
        raise CorruptCheckpointError(f"{path}: it does not hold the parts that the manifest lists")
    return values
