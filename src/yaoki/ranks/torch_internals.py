"""Private names of torch, all in one file, because any version of torch may change them."""

from typing import Any

import torch


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether this is a DTensor; asked by attribute, so as not to import torch.distributed.tensor."""
    return hasattr(tensor, "_local_tensor")


def local_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's shard of a DTensor, or the tensor itself: the memory, detached from any graph."""
    local: Any = getattr(tensor, "_local_tensor", tensor)
    return local.detach()  # type: ignore[no-any-return]


def local_shape_and_offset(tensor: torch.Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape of this rank's shard of a DTensor, and the position of its first element."""
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    assert isinstance(tensor, DTensor)
    return compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
