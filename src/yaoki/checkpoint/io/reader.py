"""Loads a checkpoint: reads it once, verifies it, and copies it into live tensors or new ones.

No live tensor is changed before the whole checkpoint is known to fit.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from yaoki.checkpoint.direct_io import new_blocks
from yaoki.checkpoint.io.compatible import (
    require_parts,
    require_same_signatures,
    require_same_ties,
    signature,
    signature_of,
)
from yaoki.checkpoint.io.read_plan import ByteRange, ReadPlan, Scatter, Tensors
from yaoki.checkpoint.io.snapshot import PartState, tied
from yaoki.checkpoint.io.tensor_file import TensorFile, tensor_files
from yaoki.checkpoint.layout import STATE
from yaoki.checkpoint.manifest import Manifest, Scope
from yaoki.checkpoint.verify import read_checked, read_manifest, read_small_checked, whole_chunks
from yaoki.errors import CorruptCheckpointError
from yaoki.ranks.agree import run_on_all
from yaoki.ranks.torch_internals import local_tensor
from yaoki.ranks.world import Channel
from yaoki.strict_json import JSON, FormatError, parse


@dataclass(frozen=True, slots=True)
class LoadedCheckpoint:
    """The state in a checkpoint."""

    path: Path
    manifest: Manifest
    parts: Mapping[str, PartState]
    """Of newly created tensors, tied ones are the same object."""


def load(
    directory: Path,
    expected_parts: Mapping[str, Scope] | None = None,
    *,
    verified: Manifest | None = None,
    only: Collection[str] | None = None,
    rank: int = 0,
) -> LoadedCheckpoint:
    """Read parts of a checkpoint into new tensors on the CPU.

    Args:
        directory: the committed checkpoint.
        expected_parts: name and scope of every part that the caller will restore; None accepts any.
        verified: its manifest, if the caller has read it. All files are verified while they are read.
        only: names of the parts to load; None loads all.
        rank: the saved rank whose per-rank parts are loaded.

    Raises:
        CorruptCheckpointError: a file is missing or damaged.
        RefusedError: parts are missing or unexpected, or have another scope.
    """
    manifest = read_manifest(directory) if verified is None else verified
    if expected_parts is not None:
        require_parts(directory, manifest, expected_parts)
    return _read(directory, manifest, {}, only, Channel(0, 1), rank)


def read_into(
    directory: Path,
    manifest: Manifest,
    targets: Mapping[str, Tensors],
    *,
    only: Collection[str] | None = None,
    ranks: Channel | None = None,
) -> LoadedCheckpoint:
    """Read a checkpoint once, from the disk, and verify it while its tensors are copied into `targets`.

    Names, shapes, dtypes, ties and sizes are compared first; before that, no target is changed. After a
    CorruptCheckpointError the targets may hold garbage: restore another checkpoint into them, or drop them.

    Any number of ranks can read what any number has written. Each reads the rows that it holds, and verifies
    the chunks that contain them.

    Args:
        directory: the committed checkpoint.
        manifest: its manifest, from `read_manifest`.
        targets: live tensors by part and name, which may be sharded. Parts without targets get new, whole
            tensors on the CPU.
        only: names of the parts to read, including those of the targets; None reads all.
        ranks: the channel between the ranks that read together; None for this process alone.

    Raises:
        CorruptCheckpointError: a file is missing, or has a wrong size, digest or header.
        RefusedError: the targets differ from the tensors of their parts.
    """
    ranks = Channel(0, 1) if ranks is None else ranks
    return _read(directory, manifest, targets, only, ranks, min(ranks.rank, manifest.world_size - 1))


def _read(
    directory: Path,
    manifest: Manifest,
    targets: Mapping[str, Tensors],
    only: Collection[str] | None,
    ranks: Channel,
    own: int,
) -> LoadedCheckpoint:
    """`own` is the saved rank whose per-rank parts are read."""
    wanted = [part for part in manifest.parts if only is None or part.name in only]
    for part, live in targets.items():
        _require_fit(manifest, part, own, live)
    json = run_on_all(ranks, partial(read_state, directory, manifest, own))
    files = run_on_all(ranks, partial(tensor_files, directory, manifest, [part.name for part in wanted]))
    read_plan = ReadPlan(manifest, targets, own)
    run_on_all(ranks, partial(_read_files, files, read_plan, ranks))
    parts = {}
    for part_entry in wanted:
        tensors = _all_names(manifest, part_entry.name, own, read_plan, targets.get(part_entry.name, {}))
        parts[part_entry.name] = PartState(part_entry.scope, tensors, json.get(part_entry.name))
    return LoadedCheckpoint(directory, manifest, parts)


def _read_files(files: Sequence[TensorFile], read_plan: ReadPlan, ranks: Channel) -> None:
    blocks = new_blocks()
    for file in files:
        ranges = [
            needed for stored in file.order if (needed := read_plan.byte_range(file, stored)) is not None
        ]
        spans = _spans(file, ranges, ranks)
        if spans:
            read_checked(file.path, file.entry, blocks, Scatter(file.path, file.header, ranges).take, spans)


def _spans(file: TensorFile, ranges: Sequence[ByteRange], ranks: Channel) -> list[tuple[int, int]]:
    """What this rank reads of a file, in whole chunks: the header and the rows that it holds.

    Bytes that no current rank needs are still read by one rank, so that together they verify the whole file.
    """
    is_of_missing_rank = file.is_per_rank and file.rank >= ranks.size
    if is_of_missing_rank or file.entry.size_bytes == len(file.header):
        return [(0, file.entry.size_bytes)] if file.rank % ranks.size == ranks.rank else []
    if not ranges:
        return []
    rows = [(needed.begin, needed.end) for needed in ranges]
    return whole_chunks(file.entry, [(0, len(file.header)), *rows])


def restore_into(live: Tensors, loaded: Tensors) -> None:
    """Copy every loaded tensor into the live one of its name, unless it was read into that one.

    Raises:
        RefusedError: names are missing or unexpected, or shapes or dtypes differ. Nothing was copied.
    """
    require_same_signatures(_signatures(live), _signatures(loaded))
    with torch.no_grad():
        for name, tensor in loaded.items():
            if local_tensor(live[name]).data_ptr() != local_tensor(tensor).data_ptr():
                local_tensor(live[name]).copy_(local_tensor(tensor))


def _require_fit(manifest: Manifest, part: str, own: int, live: Tensors) -> None:
    entries = [entry for entry in manifest.tensors if entry.part == part and entry.rank in (None, own)]
    require_same_signatures(
        _signatures(live), {entry.name: signature(entry.dtype, entry.global_shape) for entry in entries}
    )
    require_same_ties(
        tied(live), {entry.name: entry.alias_of for entry in entries if entry.alias_of is not None}
    )


def _signatures(tensors: Tensors) -> dict[str, str]:
    return {name: signature_of(tensor) for name, tensor in tensors.items()}


def _all_names(
    manifest: Manifest, part: str, own: int, read_plan: ReadPlan, live: Tensors
) -> dict[str, torch.Tensor]:
    """The tensors of a part, under all their names, in the order of the manifest."""
    tensors = {}
    for entry in manifest.tensors:
        if entry.part == part and entry.rank in (None, own):
            original = read_plan.tensor(part, entry.name if entry.alias_of is None else entry.alias_of)
            tensors[entry.name] = live.get(entry.name, original)
            if local_tensor(tensors[entry.name]).data_ptr() != local_tensor(original).data_ptr():
                with torch.no_grad():  # tied when it was saved, but not now
                    local_tensor(tensors[entry.name]).copy_(local_tensor(original))
    return tensors


def read_state(directory: Path, manifest: Manifest, rank: int) -> dict[str, JSON]:
    """The JSON of each part that has any; of per-rank parts, that of `rank`.

    Raises:
        CorruptCheckpointError: the state file is missing or damaged.
    """
    path = directory / STATE
    entry = next(file for file in manifest.files if file.name == STATE)
    try:
        match parse(read_small_checked(path, entry)):
            case {"shared": dict(shared), "per_rank": list(of_ranks)} if len(of_ranks) == manifest.world_size:
                of_rank = of_ranks[rank]
            case _:
                raise FormatError("not a JSON object with `shared` and a `per_rank` entry for each rank")
        if not isinstance(of_rank, dict):
            raise FormatError("not a JSON object with `shared` and a `per_rank` entry for each rank")
    except FormatError as error:
        raise CorruptCheckpointError(str(error), path=path) from error
    values = {**shared, **of_rank}
    if sorted(values) != sorted(part.name for part in manifest.parts if part.has_json):
        raise CorruptCheckpointError("its parts are not those that the manifest lists", path=path)
    return values
