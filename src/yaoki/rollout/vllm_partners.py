"""Neighbouring ranks that share one of vLLM's engines, each with a slice of the weights.

vLLM schedules on each of them by itself, and each samples from the logits of all: the same calls in the same
order give the same tokens on all, so no tokens are exchanged here. What has to be agreed on is when to leave.
Knows nothing of requests.
"""

import torch
import torch.distributed as dist

from yaoki.rollout.vllm_model import library


class Partners:
    """This rank among the `size` that share its engine; with 1 it has the engine for itself."""

    def __init__(self, size: int) -> None:
        self._size = size

    @property
    def is_first(self) -> bool:
        """Whether this rank speaks for all of them."""
        return self._size == 1 or dist.get_rank() % self._size == 0

    def any_reason(self, mine: str | None) -> str | None:
        """The reason that some partner gives; None if none does. All must ask, once vLLM has started."""
        if self._size == 1:
            return mine
        group = library().distributed.get_tp_group().cpu_group
        is_any = torch.tensor(int(mine is not None))
        dist.all_reduce(is_any, dist.ReduceOp.MAX, group=group)
        if not is_any:  # at every token but the last: the reasons themselves would cost more
            return None
        reasons: list[str | None] = [None] * self._size
        dist.all_gather_object(reasons, mine, group=group)
        return next(filter(None, reasons), None)
