"""Truncated importance weights."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from yaoki.rl.losses import clipped_surrogate, importance_weights

LOGPROBS = st.floats(-30.0, 0.0, width=32)
PAIRS = st.lists(st.tuples(LOGPROBS, LOGPROBS, st.booleans()), min_size=1, max_size=20)
CAPS = st.floats(0.1, 10.0)


def columns(pairs: list[tuple[float, float, bool]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    old, rollout, mask = zip(*pairs, strict=True)
    return torch.tensor([old]), torch.tensor([rollout]), torch.tensor([mask])


@given(PAIRS, CAPS)
def test_the_weights_are_those_of_plain_python(pairs: list[tuple[float, float, bool]], cap: float) -> None:
    weights = importance_weights(*columns(pairs), cap)
    for weight, (old, rollout, masked) in zip(weights[0].tolist(), pairs, strict=True):
        expected = min(math.exp(old - rollout), cap) if masked else 0.0
        assert weight == pytest.approx(expected, rel=1e-5)
        assert 0.0 <= weight <= cap * (1 + 1e-6)


@given(PAIRS, CAPS)
def test_equal_policies_have_weights_of_one(pairs: list[tuple[float, float, bool]], cap: float) -> None:
    old, _, mask = columns(pairs)
    weights = importance_weights(old, old, mask, cap)
    assert torch.equal(weights, mask * torch.tensor(min(1.0, cap)))


@given(PAIRS, CAPS, st.lists(st.floats(-3, 3, width=32), min_size=20, max_size=20))
def test_weighting_the_loss_is_weighting_the_advantages(
    pairs: list[tuple[float, float, bool]], cap: float, values: list[float]
) -> None:
    """Token by token, where the ratio is clipped and where it is not."""
    old, rollout, mask = columns(pairs)
    advantages = torch.tensor([values[: len(pairs)]])
    weights = importance_weights(old, rollout, mask, cap)
    policy = old + torch.tensor([[(place % 5 - 2) * 0.2 for place in range(len(pairs))]])

    def loss(of: torch.Tensor, where: torch.Tensor) -> float:
        return float(clipped_surrogate(policy, old, of, where, clip_eps=0.2).token_losses.sum())

    by_token = sum(
        float(weights[0, place]) * loss(advantages, torch.arange(len(pairs))[None] == place)
        for place in range(len(pairs))
        if mask[0, place]
    )
    assert loss(advantages * weights, mask) == pytest.approx(by_token, rel=1e-4, abs=1e-4)


def test_the_weighted_mean_over_the_engines_samples_is_the_learners() -> None:
    """Exactly, over all tokens of a small vocabulary, when the cap cuts nothing off."""
    learner = torch.log_softmax(torch.tensor([0.3, -1.0, 1.2, 0.0]), 0)
    engine = torch.log_softmax(torch.tensor([0.1, -0.7, 1.3, 0.2]), 0)
    weights = importance_weights(learner, engine, torch.ones(4, dtype=torch.bool), 10.0)
    rewards = torch.tensor([1.0, -2.0, 0.5, 3.0])
    assert float((engine.exp() * weights * rewards).sum()) == pytest.approx(
        float((learner.exp() * rewards).sum()), abs=1e-6
    )
    capped = importance_weights(learner, engine, torch.ones(4, dtype=torch.bool), 1.0)
    assert float((engine.exp() * capped).sum()) < 1.0


def test_padding_and_extremes_reach_nothing() -> None:
    nan = float("nan")
    old = torch.tensor([[nan, 0.0, -1.0, nan]], requires_grad=True)
    rollout = torch.tensor([[0.0, -1e30, -1.0, nan]])
    mask = torch.tensor([[False, True, True, False]])
    weights = importance_weights(old, rollout, mask, 2.0)
    assert weights.tolist() == [[0.0, 2.0, 1.0, 0.0]]
    assert not weights.requires_grad
