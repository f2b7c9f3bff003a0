"""Samples tokens from logits with given uniform numbers: pure functions of tensors.

A file of its own because every engine that samples by itself must draw the same tokens.
"""

import torch
from torch import Tensor

from yaoki.errors import NonFiniteError

_UNIT = 2.0**40
"""Probabilities become integers in this unit, so that their running sum is exact and the same on every
device; a token rarer than 2^-40 is never drawn."""


def sample_tokens(
    logits: Tensor, uniforms: Tensor, temperature: float, top_p: float
) -> tuple[Tensor, Tensor]:
    """Inverse-CDF sampling: tokens `[B]` and their log-probabilities `[B]`.

    `logits` `[B, V]`, `uniforms` `[B]` in [0, 1) as float64. The log-probability is that of the
    temperature-scaled distribution before top-p, which is what the learner computes too. NonFiniteError for
    logits that are NaN or infinite.
    """
    logprobs = torch.log_softmax(logits.float() / temperature, dim=-1)
    if bool(logprobs.isnan().any()):
        raise NonFiniteError(
            "the policy's logits are not finite: there is nothing to sample from",
            hint="training has diverged; fork the run from an earlier step with a lower policy.lr",
        )
    weights = (logprobs.double().exp() * _UNIT).long()
    if top_p < 1:
        weights = _nucleus(weights, top_p)
    running = weights.cumsum(-1)
    drawn = (uniforms * running[:, -1]).long()
    tokens = torch.searchsorted(running, drawn[:, None], right=True).squeeze(-1)
    return tokens, logprobs.gather(-1, tokens[:, None]).squeeze(-1)


def _nucleus(weights: Tensor, top_p: float) -> Tensor:
    """Zero all but the smallest set of tokens that holds `top_p` (Holtzman et al. 2020); ties by token id."""
    ordered, places = weights.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    total = weights.sum(-1, keepdim=True)
    kept = torch.where(before < (total.double() * top_p).long().clamp(min=1), ordered, 0)
    return torch.zeros_like(weights).scatter(-1, places, kept)
