"""The same algorithms as slow, plain Python in float64: one token at a time, from their definitions."""

import math
from collections.abc import Iterator, Sequence

from torch import Tensor

Table = list[list[float]]


def response(mask: Tensor, row: int) -> list[int]:
    return [t for t, inside in enumerate(mask[row].tolist()) if inside]


def tokens(mask: Tensor) -> Iterator[tuple[int, int]]:
    for row in range(mask.shape[0]):
        for t in response(mask, row):
            yield row, t


def zeros(mask: Tensor) -> Table:
    return [[0.0] * mask.shape[1] for _ in range(mask.shape[0])]


def shaped_rewards(scores: Sequence[float], mask: Tensor, penalty: Table) -> Table:
    rewards = zeros(mask)
    for row, t in tokens(mask):
        final = scores[row] if t == response(mask, row)[-1] else 0.0
        rewards[row][t] = final - penalty[row][t]
    return rewards


def gae(rewards: Table, values: Table, mask: Tensor, gamma: float, lam: float) -> tuple[Table, Table]:
    """A_t = sum over l of (gamma lambda)^l delta_(t+l), written out instead of as a recursion.

    l counts the tokens that were sampled: what lies between two of them is part of one transition.
    """
    advantages, returns = zeros(mask), zeros(mask)
    for row in range(mask.shape[0]):
        columns = response(mask, row)
        value = [values[row][t] for t in columns] + [0.0]
        delta = [rewards[row][t] + gamma * value[i + 1] - value[i] for i, t in enumerate(columns)]
        for i, t in enumerate(columns):
            ahead = range(len(columns) - i)
            advantages[row][t] = sum((gamma * lam) ** step * delta[i + step] for step in ahead)
            returns[row][t] = advantages[row][t] + value[i]
    return advantages, returns


def group_relative(
    scores: Sequence[float], group: Sequence[int], scale_by_std: bool, eps: float
) -> list[float]:
    result = []
    for row, score in enumerate(scores):
        peers = [scores[i] for i in range(len(scores)) if group[i] == group[row]]
        mean = sum(peers) / len(peers)
        std = math.sqrt(sum((s - mean) ** 2 for s in peers) / len(peers))
        result.append((score - mean) / (std + eps) if scale_by_std else score - mean)
    return result


def importance_weights(old: Table, rollout: Table, mask: Tensor, cap: float) -> Table:
    weights = zeros(mask)
    for row, t in tokens(mask):
        weights[row][t] = min(math.exp(old[row][t] - rollout[row][t]), cap)
    return weights


def moments(x: Table, mask: Tensor) -> tuple[float, float, float]:
    chosen = [x[row][t] for row, t in tokens(mask)]
    return float(len(chosen)), math.fsum(chosen), math.fsum(c * c for c in chosen)


def variance(numbers: Sequence[float]) -> float:
    mean = math.fsum(numbers) / len(numbers)
    return math.fsum((n - mean) ** 2 for n in numbers) / len(numbers)


def whiten(x: Table, mask: Tensor, eps: float) -> Table:
    result = zeros(mask)
    chosen = [x[row][t] for row, t in tokens(mask)]
    for row, t in tokens(mask):
        centred = x[row][t] - math.fsum(chosen) / len(chosen)
        result[row][t] = centred / math.sqrt(variance(chosen) + eps)
    return result


def policy_loss(
    logprobs: Table, old: Table, advantages: Table, mask: Tensor, clip_eps: float, num_tokens: int
) -> tuple[float, int, float, Table]:
    """(loss, clipped tokens, sum of k3, gradient by logprobs)."""
    loss, num_clipped, kl, gradient = 0.0, 0, 0.0, zeros(mask)
    for row, t in tokens(mask):
        ratio, advantage = math.exp(logprobs[row][t] - old[row][t]), advantages[row][t]
        bounded = min(max(ratio, 1 - clip_eps), 1 + clip_eps)
        is_clipped = bounded * advantage < ratio * advantage
        loss -= min(ratio * advantage, bounded * advantage) / num_tokens
        num_clipped += is_clipped
        kl += ratio - 1 - math.log(ratio)
        gradient[row][t] = 0.0 if is_clipped else -ratio * advantage / num_tokens
    return loss, num_clipped, kl, gradient


def value_loss(
    values: Table, old: Table, returns: Table, mask: Tensor, value_clip: float | None, num_tokens: int
) -> tuple[float, Table]:
    """(loss, gradient by values)."""
    loss, gradient = 0.0, zeros(mask)
    for row, t in tokens(mask):
        error = values[row][t] - returns[row][t]
        squared, slope = error**2, error
        if value_clip is not None:
            move = min(max(values[row][t] - old[row][t], -value_clip), value_clip)
            kept = (old[row][t] + move - returns[row][t]) ** 2
            if kept > squared and abs(values[row][t] - old[row][t]) > value_clip:
                squared, slope = kept, 0.0
        loss += 0.5 * squared / num_tokens
        gradient[row][t] = slope / num_tokens
    return loss, gradient


def kl(logprob: float, ref: float, estimator: str) -> float:
    ratio = math.exp(ref - logprob)
    return {"k1": -math.log(ratio), "k2": 0.5 * math.log(ratio) ** 2, "k3": ratio - 1 - math.log(ratio)}[
        estimator
    ]


def entropy(logits: Sequence[float]) -> float:
    top = max(logits)
    weights = [math.exp(logit - top) for logit in logits]
    shares = [w / sum(weights) for w in weights]
    return -sum(p * math.log(p) for p in shares if p > 0)
