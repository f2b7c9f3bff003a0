"""Reads a verified checkpoint back into parts, and copies tensors into live ones.

Nothing live is touched before all of it is known to fit. It knows nothing of which checkpoint should be
read, nor of what the parts mean.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch

from yaoki.checkpoint.canonical import JSON, FormatError, parse
from yaoki.checkpoint.layout import STATE, plain_child
from yaoki.checkpoint.manifest import Manifest, Scope, TensorEntry
from yaoki.checkpoint.snapshot import DTYPE_NAMES, PartState
from yaoki.checkpoint.verify import verify
from yaoki.errors import CorruptCheckpointError, RefusedError

_NUM_SHOWN = 3


@dataclass(frozen=True, slots=True)
class LoadedCheckpoint:
    """What a checkpoint holds."""

    path: Path
    manifest: Manifest
    parts: Mapping[str, PartState]
    """Tensors are on the CPU, tied ones one and the same object. They are private mappings of the
    files: their memory is read when it is touched, and writing to them does not reach the files."""


def load(
    directory: Path, expected_parts: Mapping[str, Scope] | None = None, *, verified: Manifest | None = None
) -> LoadedCheckpoint:
    """Verify a checkpoint, then read all of its parts.

    Args:
        directory: the committed checkpoint.
        expected_parts: name and scope of every part that the caller will restore; None: whatever is there.
        verified: what `verify` has just said of `directory`; saves reading everything a second time.

    Raises:
        CorruptCheckpointError: see `verify`; or the files contradict the manifest.
        RefusedError: parts are missing, left over, or of another scope; or several ranks wrote it.
    """
    manifest = verify(directory) if verified is None else verified
    if manifest.world_size != 1:
        raise RefusedError(
            f"{directory} was written by {manifest.world_size} ranks; this version reads those of one",
            hint="resume it with a version of Yaoki that reads sharded checkpoints",
        )
    if expected_parts is not None:
        _require_parts(directory, manifest, expected_parts)
    tensors = _read_tensors(directory, manifest)
    json = _read_state(directory / STATE, manifest)
    parts = {
        part.name: PartState(part.scope, tensors[part.name], json.get(part.name)) for part in manifest.parts
    }
    return LoadedCheckpoint(directory, manifest, parts)


def restore_into(live: Mapping[str, torch.Tensor], loaded: Mapping[str, torch.Tensor]) -> None:
    """Copy every loaded tensor into the live one of its name, in place; first make sure that all fit.

    Raises:
        RefusedError: names are missing or left over, or shapes or dtypes differ. Nothing was copied.
    """
    problems = (
        ("not in the checkpoint", [name for name in live if name not in loaded]),
        ("only in the checkpoint", [name for name in loaded if name not in live]),
        ("of another shape or dtype", _differences(live, loaded)),
    )
    found = [f"{len(names)} {what}: {_some(names)}" for what, names in problems if names]
    if found:
        raise RefusedError(
            f"the checkpoint's tensors do not fit: {'; '.join(found)}",
            hint="the model or optimizer differs from the one that was saved; restore into the same one",
        )
    with torch.no_grad():
        for name, tensor in loaded.items():
            live[name].copy_(tensor)


def _differences(live: Mapping[str, torch.Tensor], loaded: Mapping[str, torch.Tensor]) -> list[str]:
    return [
        f"{name} (live {_form(live[name])}, saved {_form(tensor)})"
        for name, tensor in loaded.items()
        if name in live and _form(live[name]) != _form(tensor)
    ]


def _form(tensor: torch.Tensor) -> str:
    return f"{DTYPE_NAMES.get(tensor.dtype, tensor.dtype)}{list(tensor.shape)}"


def _some(names: Iterable[str]) -> str:
    """The first few names."""
    names = list(names)
    shown = ", ".join(names[:_NUM_SHOWN])
    return shown if len(names) <= _NUM_SHOWN else f"{shown} and {len(names) - _NUM_SHOWN} more"


def _require_parts(directory: Path, manifest: Manifest, expected: Mapping[str, Scope]) -> None:
    saved = {part.name: part.scope for part in manifest.parts}
    problems = (
        ("does not hold", [name for name in expected if name not in saved]),
        ("also holds", [name for name in saved if name not in expected]),
        (
            "holds with another scope",
            [name for name in expected if name in saved and expected[name] is not saved[name]],
        ),
    )
    found = [f"{what} {_some(names)}" for what, names in problems if names]
    if found:
        raise RefusedError(
            f"{directory} does not have the expected parts: it {'; it '.join(found)}",
            hint="it was saved by a run of another kind; resume with the config that it was saved with",
        )


def _read_tensors(directory: Path, manifest: Manifest) -> dict[str, dict[str, torch.Tensor]]:
    """Tensors by part and name, in the manifest's order; aliases are the tensor that they stand for."""
    stored: dict[tuple[str, str], torch.Tensor] = {}
    for file in manifest.files:
        entries = [entry for entry in manifest.tensors if any(s.file == file.name for s in entry.shards)]
        if entries:
            stored |= _read_file(plain_child(directory, file.name), entries)
    tensors: dict[str, dict[str, torch.Tensor]] = {part.name: {} for part in manifest.parts}
    for entry in manifest.tensors:
        name = entry.name if entry.alias_of is None else entry.alias_of
        tensors[entry.part][entry.name] = stored[entry.part, name]
    return tensors


def _read_file(path: Path, entries: list[TensorEntry]) -> dict[tuple[str, str], torch.Tensor]:
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            found: dict[str, torch.Tensor] = {name: file.get_tensor(name) for name in list(file.keys())}
    except (safetensors.SafetensorError, OSError) as error:
        raise CorruptCheckpointError(f"{path}: not readable as safetensors: {error}") from error
    if sorted(found) != sorted(entry.name for entry in entries):
        raise CorruptCheckpointError(f"{path}: it does not hold the tensors that the manifest lists")
    for entry in entries:
        saved = f"{entry.dtype}{list(entry.global_shape)}"
        if _form(found[entry.name]) != saved:
            raise CorruptCheckpointError(
                f"{path}: {entry.name} is {_form(found[entry.name])}, the manifest says {saved}"
            )
    return {(entry.part, entry.name): found[entry.name] for entry in entries}


def _read_state(path: Path, manifest: Manifest) -> dict[str, JSON]:
    """The JSON of each part that has one."""
    try:
        match parse(path.read_bytes()):
            case {"shared": dict(shared), "per_rank": [dict(of_rank)]}:
                values = {**shared, **of_rank}
            case _:
                raise FormatError("not of the form that a checkpoint's state has")
    except (FormatError, OSError) as error:
        raise CorruptCheckpointError(f"{path}: {error}") from error
    if sorted(values) != sorted(part.name for part in manifest.parts if part.has_json):
        raise CorruptCheckpointError(f"{path}: it does not hold the parts that the manifest lists")
    return values
