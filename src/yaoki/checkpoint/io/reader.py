"""Reads a checkpoint back: once, verifying what it copies, straight into live tensors where there are any.

Nothing live is touched before all of it is known to fit. It knows nothing of which checkpoint should be
read, nor of what the parts mean.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from yaoki.checkpoint.direct_io import new_blocks
from yaoki.checkpoint.io.compatible import (
    form,
    require_parts,
    require_same_signatures,
    require_same_ties,
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
    rank: int = 0,
) -> LoadedCheckpoint:
    """Read parts of a checkpoint into new tensors on the CPU.

    Args:
        directory: the committed checkpoint.
        expected_parts: name and scope of every part that the caller will restore; None: whatever is there.
        verified: its manifest, if the caller has read that already. All else is verified while it is read.
        only: names of the parts to read; None: all.
        rank: whose state to load of parts that each rank has for itself.

    Raises:
        CorruptCheckpointError: names the file and what is wrong with it.
        RefusedError: parts are missing, left over, or of another scope.
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

    Names, shapes, dtypes, ties and sizes are compared first; until then nothing is touched. After a
    CorruptCheckpointError the targets may hold garbage: restore another checkpoint into them, or give up.

    Any number of ranks reads what any number has written. Each reads the rows that it holds, and verifies the
    chunks in which they lie.

    Args:
        directory: the committed checkpoint.
        manifest: what `read_manifest` says of it.
        targets: by part, all of its live tensors by name, which may be spread. Other parts get new, whole
            tensors on the CPU.
        only: names of the parts to read, the targets' among them; None: all.
        ranks: who reads together; None: this process alone.

    Raises:
        CorruptCheckpointError: a file is missing, or has not the size, digest or header that it should.
        RefusedError: the targets are not the tensors of their parts.
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
    """`own` is the rank whose state is read of parts that each rank has for itself."""
    wanted = [part for part in manifest.parts if only is None or part.name in only]
    for part, live in targets.items():
        _require_fit(manifest, part, own, live)
    json = run_on_all(ranks, partial(read_state, directory, manifest, own))
    files = run_on_all(ranks, partial(tensor_files, directory, manifest, [part.name for part in wanted]))
    landing = ReadPlan(manifest, targets, own)
    run_on_all(ranks, partial(_read_files, files, landing, ranks))
    parts = {}
    for part_entry in wanted:
        tensors = _all_names(manifest, part_entry.name, own, landing, targets.get(part_entry.name, {}))
        parts[part_entry.name] = PartState(part_entry.scope, tensors, json.get(part_entry.name))
    return LoadedCheckpoint(directory, manifest, parts)


def _read_files(files: Sequence[TensorFile], landing: ReadPlan, ranks: Channel) -> None:
    blocks = new_blocks()
    for file in files:
        pieces = [piece for stored in file.order if (piece := landing.piece(file, stored)) is not None]
        spans = _spans(file, pieces, ranks)
        if spans:
            read_checked(file.path, file.entry, blocks, Scatter(file.path, file.header, pieces).take, spans)


def _spans(file: TensorFile, pieces: Sequence[ByteRange], ranks: Channel) -> list[tuple[int, int]]:
    """What this rank reads of a file: the header and the rows that it holds, in whole chunks.

    So the ranks together read all of it. What nobody holds, one of them reads: it is to be whole, too.
    """
    left_by_a_rank = file.is_per_rank and file.rank >= ranks.size
    if left_by_a_rank or file.entry.size_bytes == len(file.header):
        return [(0, file.entry.size_bytes)] if file.rank % ranks.size == ranks.rank else []
    if not pieces:
        return []
    rows = [(piece.begin, piece.end) for piece in pieces]
    return whole_chunks(file.entry, [(0, len(file.header)), *rows])


def restore_into(live: Tensors, loaded: Tensors) -> None:
    """Copy every loaded tensor into the live one of its name, in place; first make sure that all fit.

    One that was read straight into the live one is there already.

    Raises:
        RefusedError: names are missing or left over, or shapes or dtypes differ. Nothing was copied.
    """
    require_same_signatures(_forms(live), _forms(loaded))
    with torch.no_grad():
        for name, tensor in loaded.items():
            if local_tensor(live[name]).data_ptr() != local_tensor(tensor).data_ptr():
                local_tensor(live[name]).copy_(local_tensor(tensor))


def _require_fit(manifest: Manifest, part: str, own: int, live: Tensors) -> None:
    entries = [entry for entry in manifest.tensors if entry.part == part and entry.rank in (None, own)]
    require_same_signatures(
        _forms(live), {entry.name: form(entry.dtype, entry.global_shape) for entry in entries}
    )
    require_same_ties(
        tied(live), {entry.name: entry.alias_of for entry in entries if entry.alias_of is not None}
    )


def _forms(tensors: Tensors) -> dict[str, str]:
    return {name: signature_of(tensor) for name, tensor in tensors.items()}


def _all_names(
    manifest: Manifest, part: str, own: int, landing: ReadPlan, live: Tensors
) -> dict[str, torch.Tensor]:
    """The part's tensors under all of their names, in the manifest's order."""
    tensors = {}
    for entry in manifest.tensors:
        if entry.part == part and entry.rank in (None, own):
            original = landing.tensor(part, entry.name if entry.alias_of is None else entry.alias_of)
            tensors[entry.name] = live.get(entry.name, original)
            if local_tensor(tensors[entry.name]).data_ptr() != local_tensor(original).data_ptr():
                with torch.no_grad():  # tied when it was saved, apart now
                    local_tensor(tensors[entry.name]).copy_(local_tensor(original))
    return tensors


def read_state(directory: Path, manifest: Manifest, rank: int) -> dict[str, JSON]:
    """The JSON of each part that has one; of the parts per rank that of `rank`."""
    path = directory / STATE
    entry = next(file for file in manifest.files if file.name == STATE)
    try:
        match parse(read_small_checked(path, entry)):
            case {"shared": dict(shared), "per_rank": list(of_ranks)} if len(of_ranks) == manifest.world_size:
                of_rank = of_ranks[rank]
            case _:
                raise FormatError("not of the form that a checkpoint's state has")
        if not isinstance(of_rank, dict):
            raise FormatError("not of the form that a checkpoint's state has")
    except FormatError as error:
        raise CorruptCheckpointError(str(error), path=path) from error
    values = {**shared, **of_rank}
    if sorted(values) != sorted(part.name for part in manifest.parts if part.has_json):
        raise CorruptCheckpointError("it does not hold the parts that the manifest lists", path=path)
    return values
