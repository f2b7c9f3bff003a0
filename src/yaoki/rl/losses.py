"""Losses and the numbers reported beside them.

A loss is the sum over the masked tokens divided by `num_tokens`, the token count of the whole mini-batch
over all micro-batches and ranks: adding up the micro-batches gives the mini-batch's loss and gradient,
however it was cut. The masked tokens are picked before any arithmetic, so padding changes no bit and a
NaN in it reaches neither a loss nor a gradient.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from yaoki.rl.advantages import masked_moments, mean_and_variance

KLEstimator = Literal["k1", "k2", "k3"]


class PolicyLoss(NamedTuple):
    """The policy's loss on one micro-batch with sums for the metrics, which add up over micro-batches."""

    token_losses: Tensor
    """`[T]`, of the masked tokens in row order; the only one that carries a gradient."""
    num_clipped: Tensor
    """Tokens on which the clipped branch is the smaller one, so that no gradient flows; float64."""
    approx_kl_sum: Tensor
    """Sum over tokens of the k3 estimate of KL(old policy || policy), in nats; float64."""


def clipped_surrogate(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, loss_mask: Tensor, *, clip_eps: float
) -> PolicyLoss:
    """PPO's clipped surrogate, to be minimised: -min(ratio * A, clip(ratio, 1 - eps, 1 + eps) * A).

    All tensors `[N, S]`; only `logprobs` carries a gradient.
    Source: Schulman et al. 2017, "Proximal Policy Optimization Algorithms", eq. 7.
    """
    advantages = advantages[loss_mask]
    log_ratio = logprobs[loss_mask] - old_logprobs[loss_mask]
    ratio = log_ratio.exp()
    plain = ratio * advantages
    clipped = ratio.clamp(1.0 - clip_eps, 1.0 + clip_eps) * advantages
    with torch.no_grad():
        num_clipped = (clipped < plain).sum().double()
        # The tokens are the old policy's samples, so here the old policy is the first distribution.
        approx_kl_sum = kl_estimate(-log_ratio, torch.zeros_like(log_ratio), "k3").double().sum()
    return PolicyLoss(-torch.minimum(plain, clipped), num_clipped, approx_kl_sum)


def token_mean(token_losses: Tensor, loss_mask: Tensor, num_tokens: int) -> Tensor:  # noqa: ARG001
    """Every token of the mini-batch counts the same: sum of the losses `[T]` / num_tokens; scalar.

    num_tokens >= 1: masked tokens of the whole mini-batch, over all micro-batches and ranks.
    Source: Yu et al. 2025, "DAPO", section 3.3; also Open-Reasoner-Zero's.
    """
    return token_losses.sum() / num_tokens


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    loss_mask: Tensor,
    *,
    value_clip: float | None,
    num_tokens: int,
) -> Tensor:
    """Half the squared error of the critic; scalar.

    All tensors `[N, S]`; only `values` carries a gradient. With `value_clip`, the larger of the errors of
    the value and of the value kept within +-value_clip of the old one: a move beyond it earns nothing.
    Source: the PPO of OpenAI Baselines (Dhariwal et al. 2017); the 2017 paper does not clip values.
    """
    values, returns = values[loss_mask], returns[loss_mask]
    errors = (values - returns).square()
    if value_clip is not None:
        old_values = old_values[loss_mask]
        kept = old_values + (values - old_values).clamp(-value_clip, value_clip)
        errors = torch.maximum(errors, (kept - returns).square())
    return 0.5 * errors.sum() / num_tokens


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, estimator: KLEstimator) -> Tensor:
    """Estimate of KL(policy || reference) in nats at each token sampled from the policy; any shape.

    With d = log policy - log reference: k1 = d is unbiased but may be negative; k2 = d^2 / 2 is biased,
    never negative and quiet; k3 = exp(-d) - 1 + d is unbiased and never negative.
    Source: Schulman 2020, "Approximating KL Divergence" (joschu.net/blog/kl-approx.html).

    As a penalty on the reward (no gradient), k1 is the right choice. As a loss, the gradient of an
    estimate is not an estimate of the gradient: in expectation over the policy's own samples k1 gives
    zero, k2 gives that of KL(policy || reference) at this token, k3 that of KL(reference || policy).
    Per-token losses of any kind leave out how a token changes the KL of later ones; the penalty on the
    reward does not. Source: Tang and Munos 2025, "On a few pitfalls in KL divergence gradient estimation
    for RL" (arXiv 2506.09477).
    """
    difference = logprobs - ref_logprobs
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return 0.5 * difference.square()
    return torch.expm1(-difference) + difference


def kl_loss(
    logprobs: Tensor, ref_logprobs: Tensor, loss_mask: Tensor, *, estimator: KLEstimator, num_tokens: int
) -> Tensor:
    """KL(policy || reference) as a loss; scalar, without its coefficient. `kl_estimate` says which to choose.

    All tensors `[N, S]`; only `logprobs` carries a gradient. The estimate of a padded token may overflow,
    and zero times its gradient would be NaN: hence not a masked mean of `kl_estimate`.
    """
    return kl_estimate(logprobs[loss_mask], ref_logprobs[loss_mask], estimator).sum() / num_tokens


def masked_mean(x: Tensor, mask: Tensor, *, num_tokens: int) -> Tensor:
    """Sum of the masked elements / num_tokens; scalar. Means over micro-batches add up, like the losses."""
    return x[mask].sum() / num_tokens


def entropy_from_logits(logits: Tensor) -> Tensor:
    """Entropy in nats of softmax(logits): `[..., V]` -> `[...]`, in float32 or better.

    Stable for logits of any size; a logit of -inf is a token that cannot be sampled and adds nothing.
    """
    logprobs = torch.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=-1)
    # 0 * -inf is NaN: the clamp makes it 0, for the gradient too.
    return -(logprobs.exp() * logprobs.clamp(min=torch.finfo(logprobs.dtype).min)).sum(dim=-1)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) over the masked tokens `[N, S]`: 1 perfect, 0 no use.

    0 when all returns are equal: there is nothing to explain.
    """
    return explained_variance_of(masked_moments(returns - values, mask), masked_moments(returns, mask))


def explained_variance_of(residual_moments: Tensor, return_moments: Tensor) -> float:
    """Explained variance from `masked_moments` of (returns - values) and of returns, each `[3]`.

    For a caller whose tokens lie in several micro-batches or on several ranks: their moments add up.
    """
    _, residual_variance = mean_and_variance(residual_moments)
    _, return_variance = mean_and_variance(return_moments)
    return 1.0 - residual_variance / return_variance if return_variance > 0.0 else 0.0


@torch.no_grad()
def importance_weights(
    old_logprobs: Tensor, rollout_logprobs: Tensor, loss_mask: Tensor, cap: float
) -> Tensor:
    """Truncated importance weights min(learner's probability / engine's, cap), zero outside of the mask.

    All tensors `[N, S]`, the result as old_logprobs and without a gradient; `cap` > 0, usually 2. Weights
    are not negative and the surrogate is linear in the advantages, so weighting its tokens is the same as
    multiplying the advantages by the weights: after whitening, and not the critic's returns. In expectation
    over the engine's samples, and but for the cap, the gradient is then the one of the learner's own samples.
    Source: Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training"
    (truncated importance sampling).
    """
    weights = torch.zeros_like(old_logprobs)
    ratios = (old_logprobs[loss_mask] - rollout_logprobs[loss_mask]).exp()
    weights[loss_mask] = ratios.clamp(max=cap)
    return weights
