"""Compares two checkpoints, part by part; they may be of different numbers of ranks.

Parts whose files have equal digests are not read. The others are read and verified one at a time, each tensor
gathered from its shards, so the memory needed is that of one part of each checkpoint.
"""

import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch

from yaoki.checkpoint.differences import JsonChange, PartDiff, TensorDiff
from yaoki.checkpoint.io.reader import load, read_state
from yaoki.checkpoint.layout import STATE
from yaoki.checkpoint.manifest import Scope
from yaoki.checkpoint.verify import read_manifest
from yaoki.strict_json import JSON

_CHUNK_ELEMENTS = 1 << 22
_NUM_SHOWN_VALUES = 8

TensorKey = tuple[int, str]
"""The rank, which is 0 unless each rank has a part of its own, and the name."""


def diff_checkpoints(before: Path, after: Path) -> list[PartDiff]:
    """One entry per part, in the order of the first checkpoint.

    Raises:
        CorruptCheckpointError: a manifest, or a file that has to be read, is damaged.
    """
    left, right = _Side(before), _Side(after)
    same_state = left.digests[STATE] == right.digests[STATE]
    found = []
    for name in dict.fromkeys([*left.scopes, *right.scopes]):
        changes = [] if same_state else _json_changes(left.json(name), right.json(name))
        if left.files(name) == right.files(name):
            tensors = TensorDiff(left.num_tensors(name), 0, 0, 0, 0.0, 0.0)
        else:
            tensors = _compare(left.tensors(name), right.tensors(name))
        only_in: Literal["before", "after"] | None = None
        if name not in left.scopes or name not in right.scopes:
            only_in = "before" if name in left.scopes else "after"
        equal = only_in is None and not changes and tensors.is_equal
        found.append(PartDiff(name, equal, only_in, changes, tensors))
    return found


class _Side:
    """One of the two checkpoints."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._manifest = read_manifest(path)
        self.scopes = {part.name: part.scope for part in self._manifest.parts}
        self.digests = {file.name: file.xxh3_128 for file in self._manifest.files}

    def files(self, part: str) -> dict[str, str]:
        """Digests of the files with the part's tensors, by name."""
        tensors = [tensor for tensor in self._manifest.tensors if tensor.part == part]
        return {shard.file: self.digests[shard.file] for tensor in tensors for shard in tensor.shards}

    def num_tensors(self, part: str) -> int:
        return sum(tensor.part == part and tensor.alias_of is None for tensor in self._manifest.tensors)

    def tensors(self, part: str) -> dict[TensorKey, torch.Tensor]:
        """Whole tensors, tied ones under their first name."""
        found: dict[TensorKey, torch.Tensor] = {}
        is_per_rank = self.scopes.get(part) is Scope.PER_RANK
        for rank in range(self._manifest.world_size if is_per_rank else part in self.scopes):
            loaded = load(self._path, verified=self._manifest, only=[part], rank=rank).parts[part]
            names = loaded.tensors.keys() - loaded.aliases.keys()
            found |= {(rank, name): tensor for name, tensor in loaded.tensors.items() if name in names}
        return found

    def json(self, part: str) -> dict[str, JSON]:
        """Every value in the part's JSON by its path; a list is one value."""
        if self.scopes.get(part) is not Scope.PER_RANK:
            return _leaves(self._states[0].get(part))
        return _leaves({f"rank {i}": state[part] for i, state in enumerate(self._states) if part in state})

    @cached_property
    def _states(self) -> list[dict[str, JSON]]:
        """The JSON of all parts as each rank has it."""
        return [read_state(self._path, self._manifest, rank) for rank in range(self._manifest.world_size)]


def _compare(before: Mapping[TensorKey, torch.Tensor], after: Mapping[TensorKey, torch.Tensor]) -> TensorDiff:
    num_equal = num_different = 0
    largest = squared_change = squared_before = torch.zeros((), dtype=torch.float64)
    for key in [key for key in before if key in after]:
        a, b = before[key], after[key]
        is_equal = (a.dtype, a.shape) == (b.dtype, b.shape)
        chunks = zip(*(tensor.flatten().split(_CHUNK_ELEMENTS) for tensor in (a, b)), strict=True)
        for old, new in chunks if is_equal else ():
            same = _same_bits(old, new)
            is_equal &= bool(same.all())
            if a.dim() and a.numel():  # the step counts of the moments would outweigh the moments
                change = torch.where(same, 0.0, new.double() - old.double())
                largest = torch.maximum(largest, change.abs().max())  # unlike max(), it keeps a NaN
                squared_change = squared_change + change.square().sum()
                squared_before = squared_before + old.double().square().sum()
        num_equal += is_equal
        num_different += not is_equal
    norm = (squared_change.sqrt() / squared_before.sqrt()).item() if squared_change != 0 else 0.0
    return TensorDiff(
        num_equal=num_equal,
        num_different=num_different,
        num_only_before=len(before.keys() - after.keys()),
        num_only_after=len(after.keys() - before.keys()),
        max_abs_difference=_finite(largest.item()),
        relative_norm=_finite(norm),
    )


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Per element of `[N]`."""
    size = (a.numel(), a.element_size())
    return (a.view(torch.uint8).view(size) == b.view(torch.uint8).view(size)).all(dim=1)


def _leaves(value: JSON, prefix: str = "") -> dict[str, JSON]:
    if not isinstance(value, dict):
        return {} if value is None and not prefix else {prefix: value}
    return {
        path: leaf
        for key, child in value.items()
        for path, leaf in _leaves(child, f"{prefix}.{key}" if prefix else key).items()
    }


def _json_changes(before: dict[str, JSON], after: dict[str, JSON]) -> list[JsonChange]:
    return [
        JsonChange(key, _shown(before.get(key)), _shown(after.get(key)))
        for key in dict.fromkeys([*before, *after])
        if key not in before or key not in after or before[key] != after[key]
    ]


def _shown(value: JSON) -> JSON:
    """A long list as its length: the state of a generator has thousands of numbers."""
    if isinstance(value, list) and len(value) > _NUM_SHOWN_VALUES:
        return f"{len(value)} values"
    return value


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
