"""What changed between two checkpoints, part by part, and by how much.

Files with equal digests are equal and are not read; the others are verified, then compared tensor by tensor.
Knows nothing of what the parts mean.
"""

import math
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import safetensors
import torch

from yaoki.checkpoint.direct_io import new_blocks
from yaoki.checkpoint.layout import STATE, plain_child
from yaoki.checkpoint.manifest import ShardEntry, TensorEntry
from yaoki.checkpoint.verify import read_checked, read_manifest
from yaoki.errors import CorruptCheckpointError, RefusedError
from yaoki.strict_json import JSON, FormatError, parse

_CHUNK_ELEMENTS = 1 << 22
_NUM_SHOWN_VALUES = 8


def diff_checkpoints(before: Path, after: Path) -> list[dict[str, Any]]:
    """One entry per part, in the order of the first checkpoint, as plain JSON.

    `max_abs_difference` and `relative_norm` (|after - before| / |before|) are over the tensors of the part
    that both have in one shape and dtype, single numbers aside, in files that differ; None where that is
    not finite.

    Raises:
        CorruptCheckpointError: a manifest, or a file that has to be read, is damaged.
        RefusedError: the tensors of the two are cut into shards differently.
    """
    with ExitStack() as stack:
        left, right = _Side(before, stack), _Side(after, stack)
        left.verify_unless_in(right)
        right.verify_unless_in(left)
        same_state = left.digests[STATE] == right.digests[STATE]
        states: list[dict[str, JSON]] = [{}, {}] if same_state else [left.state(), right.state()]
        found = []
        for name in dict.fromkeys([*left.parts, *right.parts]):
            changes = _json_changes(*(_leaves(state.get(name)) for state in states))
            tensors = _compare(name, left, right)
            in_both = name in left.parts and name in right.parts
            entry = {"part": name, "equal": in_both and not changes and not tensors.num_changed}
            if not in_both:
                entry["only_in"] = "before" if name in left.parts else "after"
            found.append(entry | {"json": changes, "tensors": tensors.to_json()})
    return found


class _Side:
    """One of the two checkpoints."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self._path = path
        self._stack = stack
        self._manifest = read_manifest(path)
        self._open: dict[str, Any] = {}
        self.parts = [part.name for part in self._manifest.parts]
        self.digests = {file.name: file.xxh3_128 for file in self._manifest.files}

    def verify_unless_in(self, other: "_Side") -> None:
        """Read the files that the other one does not have, byte for byte."""
        blocks = new_blocks()
        for file in self._manifest.files:
            if other.digests.get(file.name) != file.xxh3_128:
                read_checked(plain_child(self._path, file.name), file, blocks, lambda *_: None)

    def tensors(self, part: str) -> dict[tuple[int | None, str], TensorEntry]:
        """By rank (of parts that each rank has for itself) and name; without second names of tied ones."""
        return {
            (entry.rank, entry.name): entry
            for entry in self._manifest.tensors
            if entry.part == part and entry.alias_of is None
        }

    def box(self, entry: TensorEntry, shard: ShardEntry) -> torch.Tensor:
        """What one file holds of a tensor."""
        path = plain_child(self._path, shard.file)
        try:
            if shard.file not in self._open:
                file = safetensors.safe_open(path, framework="pt", device="cpu")
                self._open[shard.file] = self._stack.enter_context(file)
            found: torch.Tensor = self._open[shard.file].get_tensor(entry.name)
        except (safetensors.SafetensorError, OSError) as error:
            raise CorruptCheckpointError(f"not readable as safetensors: {error}", path=path) from error
        return found

    def state(self) -> dict[str, JSON]:
        """The JSON of each part; of what each rank has for itself, a list."""
        path = self._path / STATE
        try:
            match parse(path.read_bytes()):
                case {"shared": dict(shared), "per_rank": list(ranks)}:
                    own = dict.fromkeys(name for rank in ranks if isinstance(rank, dict) for name in rank)
                    return shared | {name: _by_rank(name, ranks) for name in own}
                case _:
                    raise FormatError("not of the form that a checkpoint's state has")
        except (FormatError, OSError) as error:
            raise CorruptCheckpointError(str(error), path=path) from error


@dataclass
class _TensorChanges:
    """What became of one part's tensors."""

    num_equal: int = 0
    num_different: int = 0
    num_only_before: int = 0
    num_only_after: int = 0
    largest: float = 0.0
    squared_change: float = 0.0
    squared_before: float = 0.0

    @property
    def num_changed(self) -> int:
        return self.num_different + self.num_only_before + self.num_only_after

    def add(self, before: torch.Tensor, after: torch.Tensor) -> None:
        """Take in the elements `[N]` of two boxes."""
        chunks = zip(before.split(_CHUNK_ELEMENTS), after.split(_CHUNK_ELEMENTS), strict=True)
        for old, new in (chunk for chunk in chunks if chunk[0].numel()):
            a = old.double()
            self.squared_before += a.square().sum().item()
            change = torch.where(_same_bits(old, new), 0.0, new.double() - a)
            self.largest = torch.maximum(torch.tensor(self.largest), change.abs().max()).item()
            self.squared_change += change.square().sum().item()

    def to_json(self) -> dict[str, Any]:
        norm = math.sqrt(self.squared_before) if math.isfinite(self.squared_before) else math.nan
        change = math.sqrt(self.squared_change) if math.isfinite(self.squared_change) else math.nan
        return {
            "num_equal": self.num_equal,
            "num_different": self.num_different,
            "num_only_before": self.num_only_before,
            "num_only_after": self.num_only_after,
            "max_abs_difference": _finite(self.largest),
            "relative_norm": 0.0 if change == 0 else _finite(change / norm if norm else math.nan),
        }


def _compare(part: str, left: _Side, right: _Side) -> _TensorChanges:
    before, after = left.tensors(part), right.tensors(part)
    found = _TensorChanges(
        num_only_before=len(before.keys() - after.keys()), num_only_after=len(after.keys() - before.keys())
    )
    for key, entry in before.items():
        if key not in after:
            continue
        other = after[key]
        if (entry.dtype, entry.global_shape) != (other.dtype, other.global_shape):
            found.num_different += 1
            continue
        different = _different_boxes(entry, other, left, right, found)
        found.num_different += different
        found.num_equal += not different
    return found


def _different_boxes(
    entry: TensorEntry, other: TensorEntry, left: _Side, right: _Side, found: _TensorChanges
) -> bool:
    """Whether a tensor differs; what differs is added to `found`."""
    different = False
    for one, two in zip_longest(entry.shards, other.shards):
        if one is None or two is None or (one.offsets, one.shape) != (two.offsets, two.shape):
            raise RefusedError(
                f"{entry.name} of {entry.part} is cut into shards differently in the two checkpoints",
                hint="only checkpoints of runs with the same number of ranks can be compared",
            )
        if left.digests[one.file] == right.digests[two.file]:
            continue
        a, b = left.box(entry, one).flatten(), right.box(other, two).flatten()
        if entry.global_shape:  # the moments' step counts would outweigh the moments
            found.add(a, b)
        different |= not bool(_same_bits(a, b).all())
    return different


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Per element of `[N]`: -0.0 is not 0.0, a NaN is itself."""
    size = (a.numel(), a.element_size())
    return (a.view(torch.uint8).view(size) == b.view(torch.uint8).view(size)).all(dim=1)


def _by_rank(name: str, ranks: list[JSON]) -> JSON:
    return {f"rank {i}": rank.get(name) for i, rank in enumerate(ranks) if isinstance(rank, dict)}


def _leaves(value: JSON, prefix: str = "") -> dict[str, JSON]:
    """Everything below a value by its dotted path; a list is one thing."""
    if not isinstance(value, dict):
        return {} if value is None and not prefix else {prefix: value}
    return {
        path: leaf
        for key, child in value.items()
        for path, leaf in _leaves(child, f"{prefix}.{key}" if prefix else key).items()
    }


def _json_changes(before: dict[str, JSON], after: dict[str, JSON]) -> list[dict[str, Any]]:
    return [
        {"key": key, "before": _shown(before.get(key)), "after": _shown(after.get(key))}
        for key in dict.fromkeys([*before, *after])
        if key not in before or key not in after or before[key] != after[key]
    ]


def _shown(value: JSON) -> JSON:
    """A long list as its length: generators have thousands of numbers."""
    if isinstance(value, list) and len(value) > _NUM_SHOWN_VALUES:
        return f"{len(value)} values"
    return value


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
