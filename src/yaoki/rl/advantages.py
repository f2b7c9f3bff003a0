"""From scores to advantages: reward shaping, GAE, GRPO's group-relative advantage, whitening.

Rows are independent of one another (but for groups and moments), and nothing outside of the mask, not
even a NaN, reaches a result. Statistics are summed in float64 in a fixed order, over the masked tokens
alone, so padding changes no bit. A caller with several ranks adds moments.
"""

import math

import torch
from torch import Tensor


def shaped_rewards(scores: Tensor, loss_mask: Tensor, penalty: Tensor | None) -> Tensor:
    """Reward of each token `[N, S]` float32: the score on the last masked token, minus a penalty on each.

    scores `[N]`; loss_mask `[N, S]`, in each row with gaps or without; penalty `[N, S]`, such as a
    coefficient times an estimate of KL(policy || reference), or None. A row without masked tokens gets zeros.
    Source: Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences", eq. 2.
    """
    num_left = loss_mask.flip(1).cumsum(1).flip(1)
    rewards = torch.where(loss_mask & (num_left == 1), scores.float().unsqueeze(1), 0.0)
    if penalty is not None:
        rewards = rewards - torch.where(loss_mask, penalty, 0.0)
    return rewards


def gae(
    rewards: Tensor, values: Tensor, loss_mask: Tensor, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation: (advantages, returns), both `[N, S]` float32, zero outside the mask.

    rewards, values, loss_mask `[N, S]`. The value after the last masked token is 0: an answer is over when it
    ends. A gap in a row's mask, such as an environment's answer between two turns, is one transition: the
    token before it bootstraps from the first one after it. The returns are advantages + values. Accumulates
    in float64, so that gamma = lambda = 1 makes each return the plain sum of the rewards from its token on.
    Source: Schulman et al. 2016, "High-Dimensional Continuous Control Using GAE", eq. 16.
    """
    advantages = torch.zeros_like(rewards, dtype=torch.float32)
    returns = torch.zeros_like(advantages)
    zero = rewards.new_zeros(rewards.shape[0], dtype=torch.float64)
    next_value, next_advantage = zero, zero
    for t in reversed(range(rewards.shape[1])):
        mask, value = loss_mask[:, t], values[:, t].double()
        delta = rewards[:, t].double() + gamma * next_value - value
        advantage = delta + gamma * gae_lambda * next_advantage
        next_value = torch.where(mask, value, next_value)
        next_advantage = torch.where(mask, advantage, next_advantage)
        advantages[:, t] = torch.where(mask, advantage, zero)
        returns[:, t] = torch.where(mask, advantage + value, zero)
    return advantages, returns


def group_relative_advantages(
    scores: Tensor, group: Tensor, loss_mask: Tensor, *, scale_by_std: bool, eps: float = 1e-6
) -> Tensor:
    """GRPO: each score against the mean of its group, on every response token; `[N, S]` float32.

    scores `[N]` float32; group `[N]` int64, any labels in any order; loss_mask `[N, S]`. `scale_by_std`
    divides by the group's population standard deviation + eps; without it the advantage stays in units of
    the score, which does not favour questions that are very easy or very hard (Liu et al. 2025,
    "Understanding R1-Zero-Like Training"). A group of equal scores, or of one rollout, gets exactly zero.
    Source: Shao et al. 2024, "DeepSeekMath", section 4.1.
    """
    relative = torch.zeros_like(scores, dtype=torch.float64)
    for label in sorted(set(group.tolist())):
        members = group == label
        # In float64 the sum of equal float32 scores is exact, and so is their mean: they centre to zero.
        peers = scores[members].double()
        centred = peers - peers.mean()
        relative[members] = centred / (centred.square().mean().sqrt() + eps) if scale_by_std else centred
    return torch.where(loss_mask, relative.float().unsqueeze(1), 0.0)


def masked_moments(x: Tensor, mask: Tensor) -> Tensor:
    """(count, sum, sum of squares) of the masked elements of `x`: `[3]` float64.

    x, mask: same shape. Moments of disjoint parts (micro-batches, ranks) add up to those of the whole.
    """
    chosen = x[mask].double()
    return torch.stack([mask.sum().double(), chosen.sum(), chosen.square().sum()])


def mean_and_variance(moments: Tensor) -> tuple[float, float]:
    """Mean and population variance from `masked_moments` `[3]`; (0, 0) when nothing was counted.

    A variance below the rounding of the sum of squares is zero: it could not be told from noise.
    """
    count, total, total_sq = moments.tolist()
    if count == 0:
        return 0.0, 0.0
    mean, mean_sq = total / count, total_sq / count
    variance = mean_sq - mean * mean
    return mean, variance if variance > 1e-12 * mean_sq else 0.0


def whiten(x: Tensor, mask: Tensor, moments: Tensor, eps: float = 1e-8) -> Tensor:
    """`x` with the mean of `moments` removed, divided by its deviation; same shape and dtype as `x`.

    moments `[3]`: of the whole batch over all ranks, from `masked_moments`. eps is added to the variance.
    Elements outside of the mask are zero; fewer than two tokens give zeros.
    """
    mean, variance = mean_and_variance(moments)
    scaled = (x.double() - mean) * (1.0 / math.sqrt(variance + eps))
    return torch.where(mask, scaled, 0.0).to(x.dtype)
