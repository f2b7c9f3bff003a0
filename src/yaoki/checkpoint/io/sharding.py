"""The rows of a tensor that a rank holds, which it writes and reads. Shared by saving and loading.

Tensors are sharded along their first dimension (a DTensor), or whole and equal on every rank.
"""

import math
from dataclasses import dataclass

import torch

from yaoki.errors import YaokiError
from yaoki.ranks.torch_internals import is_sharded, local_shape_and_offset, local_tensor


@dataclass(frozen=True, slots=True)
class LocalShard:
    """Consecutive rows of a tensor, which are consecutive bytes."""

    global_shape: tuple[int, ...]
    first_row: int
    num_rows: int
    """A tensor without dimensions has one row."""

    @property
    def offsets(self) -> tuple[int, ...]:
        """Position of the shard's first element, one number per dimension."""
        return (self.first_row, *(0 for _ in self.global_shape[1:])) if self.global_shape else ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the shard."""
        return (self.num_rows, *self.global_shape[1:]) if self.global_shape else ()

    @property
    def row_elements(self) -> int:
        """Number of elements in a row."""
        return math.prod(self.global_shape[1:])


def local_shard_of(tensor: torch.Tensor) -> LocalShard:
    """The rows that `local_tensor` returns.

    Raises:
        YaokiError: the tensor is sharded along another dimension than the first.
    """
    shape = tuple(tensor.shape)
    if not is_sharded(tensor):
        return LocalShard(shape, 0, shape[0] if shape else 1)
    held, offsets = local_shape_and_offset(tensor)
    if held[1:] != shape[1:]:
        raise YaokiError(f"a tensor of shape {shape} is sharded into {held}, not along its first dimension")
    return LocalShard(shape, offsets[0] if held[0] else 0, held[0])


def writes_shard(tensor: torch.Tensor, rank: int) -> bool:
    """Whether this rank writes its shard: any rank that has rows; rank 0 if the tensor is not sharded."""
    if is_sharded(tensor) and tensor.numel():
        return local_tensor(tensor).numel() > 0
    return rank == 0
