"""The result of comparing two checkpoints.

A module of its own, because `io/diff.py`, which compares, needs torch, and printing the result does not.
"""

from dataclasses import dataclass
from typing import Literal

from yaoki.strict_json import JSON


@dataclass(frozen=True, slots=True)
class JsonChange:
    """A value in the JSON of a part that differs."""

    key: str
    """The path to it, with dots; below `rank N` in a part of which each rank has its own."""
    before: JSON
    """None if there is none; a long list as its length."""
    after: JSON


@dataclass(frozen=True, slots=True)
class TensorDiff:
    """How the tensors of a part differ. Tied tensors count once."""

    num_equal: int
    """Equal bits: -0.0 is not 0.0, and a NaN is itself."""
    num_different: int
    num_only_before: int
    num_only_after: int
    max_abs_difference: float | None
    """Over the tensors that both have in one shape and dtype, scalars aside; None if it is not finite."""
    relative_norm: float | None
    """|after - before| / |before| over the same tensors; None if it is not finite."""

    @property
    def is_equal(self) -> bool:
        return not (self.num_different or self.num_only_before or self.num_only_after)


@dataclass(frozen=True, slots=True)
class PartDiff:
    """How a part differs."""

    part: str
    equal: bool
    only_in: Literal["before", "after"] | None
    json: list[JsonChange]
    tensors: TensorDiff
