"""Reward shaping, GAE, group-relative advantages and whitening, by hand and against the oracle."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from yaoki.rl.advantages import (
    gae,
    group_relative_advantages,
    masked_moments,
    mean_and_variance,
    shaped_rewards,
    whiten,
)

from . import oracle
from .ragged import checked, long_mask, masks, noise, seeds, widen, with_gaps, without_gaps

discounts = st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0])


def assert_rounds_to(actual: Tensor, expected: oracle.Table) -> None:
    """The float32 result is the float64 oracle but for the last rounding."""
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), torch.tensor(expected).double(), rtol=2e-7, atol=1e-9)


def draw_scores(mask: Tensor, seed: int) -> Tensor:
    return torch.randint(0, 2, (mask.shape[0],), generator=torch.Generator().manual_seed(seed)).float()


# Reward shaping


def test_the_score_is_on_the_last_masked_token_of_each_row() -> None:
    mask = torch.tensor(
        [
            [False, True, True, False],
            [False, False, True, True],
            [False, True, False, True],  # a gap: the token before it is not the last one
            [True, False, True, False],
            [False, False, False, False],
        ]
    )
    rewards = shaped_rewards(torch.tensor([1.0, 0.5, -2.0, 0.25, 1.0]), mask, None)
    assert rewards.tolist() == [[0, 0, 1, 0], [0, 0, 0, 0.5], [0, 0, 0, -2], [0, 0, 0.25, 0], [0, 0, 0, 0]]


def test_the_penalty_is_subtracted_on_every_masked_token() -> None:
    mask = torch.tensor([[False, True, False, True]])
    penalty = torch.tensor([[9.0, 0.25, float("nan"), -0.125]])
    assert shaped_rewards(torch.tensor([1.0]), mask, penalty).tolist() == [[0, -0.25, 0, 1.125]]


@checked
@given(masks(), seeds)
def test_shaped_rewards_match_the_oracle(mask: Tensor, seed: int) -> None:
    scores, penalty = draw_scores(mask, seed), noise(mask, seed)
    expected = oracle.shaped_rewards(scores.tolist(), mask, penalty.tolist())
    torch.testing.assert_close(
        shaped_rewards(scores, mask, penalty), torch.tensor(expected), rtol=1e-6, atol=1e-6
    )


# Generalised advantage estimation


def test_gae_by_hand_without_discount() -> None:
    # gamma = lambda = 1: the advantage is the final reward minus the value.
    mask = torch.tensor([[False, True, True, True]])
    rewards, values = torch.tensor([[7.0, 0, 0, 1]]), torch.tensor([[7.0, 0.25, 0.5, 0.75]])
    advantages, returns = gae(rewards, values, mask, 1.0, 1.0)
    assert advantages.tolist() == [[0, 0.75, 0.5, 0.25]]
    assert returns.tolist() == [[0, 1, 1, 1]]


def test_gae_by_hand_with_discount() -> None:
    # gamma = lambda = 1/2, values 1/2, 1/4, rewards 1/8, 1:
    # delta_2 = 1 - 1/4 = 3/4; delta_1 = 1/8 + 1/2 * 1/4 - 1/2 = -1/4
    # A_2 = 3/4; A_1 = -1/4 + 1/4 * 3/4 = -1/16; returns 1 and 7/16.
    mask = torch.tensor([[False, True, True, False]])
    rewards, values = torch.tensor([[0.0, 0.125, 1, 5]]), torch.tensor([[3.0, 0.5, 0.25, 5]])
    advantages, returns = gae(rewards, values, mask, 0.5, 0.5)
    assert advantages.tolist() == [[0, -0.0625, 0.75, 0]]
    assert returns.tolist() == [[0, 0.4375, 1, 0]]


def test_gae_by_hand_across_a_gap() -> None:
    # gamma = lambda = 1/2, and the numbers of the test above for tokens 1 and 4: the same as side by side.
    mask = torch.tensor([[False, True, False, False, True]])
    rewards, values = torch.tensor([[0.0, 0.125, 5, 5, 1]]), torch.tensor([[3.0, 0.5, 7, 7, 0.25]])
    advantages, returns = gae(rewards, values, mask, 0.5, 0.5)
    assert advantages.tolist() == [[0, -0.0625, 0, 0, 0.75]]
    assert returns.tolist() == [[0, 0.4375, 0, 0, 1]]


def test_gae_with_lambda_zero_is_the_one_step_error() -> None:
    # delta_1 = 0 + 1 * 1/4 - 1/2, delta_2 = 1 - 1/4; nothing flows back.
    mask = torch.tensor([[False, True, True]])
    advantages, _ = gae(torch.tensor([[0.0, 0, 1]]), torch.tensor([[0.0, 0.5, 0.25]]), mask, 1.0, 0.0)
    assert advantages.tolist() == [[0, -0.25, 0.75]]


@checked
@given(masks(), seeds, discounts, discounts)
def test_a_gap_is_one_transition_to_the_bit(mask: Tensor, seed: int, gamma: float, lam: float) -> None:
    rewards, values = noise(mask, seed), noise(mask, seed + 1)
    (close_rewards, together), (close_values, _) = without_gaps(rewards, mask), without_gaps(values, mask)
    apart = gae(rewards, values, mask, gamma, lam)
    for one, other in zip(apart, gae(close_rewards, close_values, together, gamma, lam), strict=True):
        assert torch.equal(one[mask], other[together])
        assert not one[~mask].any()


@checked
@given(masks(gaps=False), seeds, discounts, discounts)
def test_without_gaps_gae_has_the_bits_of_the_plain_recursion(
    mask: Tensor, seed: int, gamma: float, lam: float
) -> None:
    """The recursion over columns that starts anew at every column outside of the mask."""
    rewards, values = noise(mask, seed), noise(mask, seed + 1)
    found = gae(rewards, values, mask, gamma, lam)
    zero = torch.zeros(mask.shape[0], dtype=torch.float64)
    next_value, advantage = zero, zero
    for t in reversed(range(mask.shape[1])):
        value = values[:, t].double()
        delta = rewards[:, t].double() + gamma * next_value - value
        advantage = torch.where(mask[:, t], delta + gamma * lam * advantage, zero)
        next_value = torch.where(mask[:, t], value, zero)
        assert torch.equal(found[0][:, t], advantage.float())
        assert torch.equal(found[1][:, t], (advantage + next_value).float())


@checked
@given(masks(), seeds, discounts, discounts)
def test_gae_matches_the_oracle(mask: Tensor, seed: int, gamma: float, lam: float) -> None:
    rewards, values = noise(mask, seed), noise(mask, seed + 1)
    expected = oracle.gae(rewards.tolist(), values.tolist(), mask, gamma, lam)
    for actual, table in zip(gae(rewards, values, mask, gamma, lam), expected, strict=True):
        assert_rounds_to(actual, table)


@pytest.mark.parametrize("mask", [long_mask(), with_gaps(long_mask())], ids=["contiguous", "gaps"])
def test_gae_returns_are_the_score_exactly_without_discount(mask: Tensor) -> None:
    scores = draw_scores(mask, 3)
    _, returns = gae(shaped_rewards(scores, mask, None), noise(mask, 4), mask, 1.0, 1.0)
    assert torch.equal(returns, torch.where(mask, scores.unsqueeze(1), 0.0))


# Group-relative advantages


def test_group_of_two_right_and_two_wrong() -> None:
    mask = torch.tensor([[False, True]] * 4)
    scores, group = torch.tensor([1.0, 0, 0, 1]), torch.zeros(4, dtype=torch.int64)
    plain = group_relative_advantages(scores, group, mask, scale_by_std=False)
    assert plain.tolist() == [[0, 0.5], [0, -0.5], [0, -0.5], [0, 0.5]]
    # The population standard deviation of 1 0 0 1 is 1/2, so the advantage doubles.
    scaled = group_relative_advantages(scores, group, mask, scale_by_std=True, eps=0.0)
    assert scaled.tolist() == [[0, 1], [0, -1], [0, -1], [0, 1]]


def test_interleaved_groups_do_not_mix_and_equal_scores_give_zero() -> None:
    # Group 9 holds 1 0 0 0: mean 1/4, deviation sqrt(3)/4. Group 2 holds three times 0.1; group 5 one row.
    scores = torch.tensor([1.0, 0.1, 0, 0.1, 0, 0.1, 0, 1])
    group = torch.tensor([9, 2, 9, 2, 9, 2, 9, 5])
    mask = torch.tensor([[False, True]] * 8)
    advantages = group_relative_advantages(scores, group, mask, scale_by_std=True, eps=0.0)[:, 1]
    low, high = -1 / math.sqrt(3), math.sqrt(3)
    torch.testing.assert_close(advantages[group == 9], torch.tensor([high, low, low, low]))
    # 0 / 0 with eps = 0 is NaN; with any other it is exactly zero.
    advantages = group_relative_advantages(scores, group, mask, scale_by_std=True)[:, 1]
    assert advantages[group != 9].tolist() == [0, 0, 0, 0]


@checked
@given(st.floats(-1000, 1000, width=32), st.integers(1, 200))
def test_a_group_of_equal_scores_gets_exactly_zero(score: float, size: int) -> None:
    scores, group, mask = (
        torch.full((size,), score),
        torch.zeros(size, dtype=torch.int64),
        torch.ones(size, 1),
    )
    assert not group_relative_advantages(scores, group, mask.bool(), scale_by_std=True).any()


@checked
@given(masks(max_rows=8), seeds, st.booleans())
def test_group_relative_advantages_match_the_oracle(mask: Tensor, seed: int, scale_by_std: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(mask.shape[0], generator=generator)
    group = torch.randint(0, 3, (mask.shape[0],), generator=generator)
    expected = oracle.group_relative(scores.tolist(), group.tolist(), scale_by_std, 1e-4)
    actual = group_relative_advantages(scores, group, mask, scale_by_std=scale_by_std, eps=1e-4)
    column = torch.tensor(expected, dtype=torch.float64).unsqueeze(1)
    torch.testing.assert_close(actual.double(), torch.where(mask, column, 0.0), rtol=2e-7, atol=1e-9)


# Moments and whitening


def test_moments_and_whitening_by_hand() -> None:
    # 1 2 3 6: mean 3, variance (4 + 1 + 0 + 9) / 4 = 3.5.
    x = torch.tensor([[100.0, 1, 2], [100, 3, 6]])
    mask = torch.tensor([[False, True, True], [False, True, True]])
    moments = masked_moments(x, mask)
    assert moments.dtype == torch.float64
    assert moments.tolist() == [4, 12, 50]
    assert mean_and_variance(moments) == (3.0, 3.5)
    unit = 1 / math.sqrt(3.5)
    expected = torch.tensor([[0, -2 * unit, -unit], [0, 0, 3 * unit]])
    torch.testing.assert_close(whiten(x, mask, moments, eps=0.0), expected)


@checked
@given(masks(), seeds, st.sampled_from([0.0, 3.0]))
def test_whitening_matches_the_oracle(mask: Tensor, seed: int, shift: float) -> None:
    x = noise(mask, seed) + shift
    moments = masked_moments(x, mask)
    torch.testing.assert_close(moments, torch.tensor(oracle.moments(x.tolist(), mask), dtype=torch.float64))
    actual = whiten(x, mask, moments, eps=1e-3)
    torch.testing.assert_close(
        actual, torch.tensor(oracle.whiten(x.tolist(), mask, 1e-3)), rtol=1e-5, atol=1e-6
    )


def test_moments_of_the_parts_add_up_to_those_of_the_whole() -> None:
    mask = long_mask()
    x = noise(mask, 1)
    parts = sum(masked_moments(x[i : i + 2], mask[i : i + 2]) for i in range(0, 7, 2))
    torch.testing.assert_close(parts, masked_moments(x, mask), rtol=1e-14, atol=0)


def test_whitening_fewer_than_two_tokens_or_equal_ones_gives_zeros() -> None:
    mask = torch.tensor([[False, True, True, True]])
    for few in (torch.zeros_like(mask), torch.tensor([[False, True, False, False]])):
        x = noise(few, 1)
        assert whiten(x, few, masked_moments(x, few)).tolist() == [[0, 0, 0, 0]]
    x = torch.full((1, 4), 0.1)
    torch.testing.assert_close(whiten(x, mask, masked_moments(x, mask)), torch.zeros(1, 4))


@checked
@given(st.floats(-1000, 1000, width=32), st.integers(1, 2000))
def test_equal_numbers_have_no_variance_at_all(number: float, count: int) -> None:
    x = torch.full((1, count), number)
    mean, variance = mean_and_variance(masked_moments(x, torch.ones_like(x, dtype=torch.bool)))
    assert mean == pytest.approx(number)
    assert variance == 0.0


# What must change no bit


@pytest.mark.parametrize("mask", [long_mask(), with_gaps(long_mask())], ids=["contiguous", "gaps"])
@pytest.mark.parametrize("extra", [1, 3, 8, 67])
def test_padding_changes_no_bit(extra: int, mask: Tensor) -> None:
    scores, penalty, values, group = draw_scores(mask, 1), noise(mask, 2), noise(mask, 3), torch.arange(7) % 3

    def everything(mask: Tensor, penalty: Tensor, values: Tensor) -> list[Tensor]:
        rewards = shaped_rewards(scores, mask, penalty)
        advantages, returns = gae(rewards, values, mask, 0.99, 0.95)
        relative = group_relative_advantages(scores, group, mask, scale_by_std=True)
        moments = masked_moments(advantages, mask)
        return [moments, rewards, advantages, returns, relative, whiten(advantages, mask, moments)]

    narrow_moments, *narrow = everything(mask, penalty, values)
    wide_moments, *wide = everything(widen(mask, extra), widen(penalty, extra), widen(values, extra))
    assert torch.equal(narrow_moments, wide_moments)
    for one, other in zip(narrow, wide, strict=True):
        assert torch.equal(one, other[:, :61])
        assert not other[:, 61:].any()


@pytest.mark.parametrize("extra", [1, 3, 8, 67])
def test_padding_changes_no_bit_of_the_moments(extra: int) -> None:
    # Numbers of very different sizes: every other order of the sums would round differently.
    mask = long_mask()
    x = noise(mask, 5) * noise(mask, 6, scale=10.0).exp()
    assert torch.equal(masked_moments(x, mask), masked_moments(widen(x, extra), widen(mask, extra)))


def test_the_order_of_the_rows_does_not_matter() -> None:
    mask, order = long_mask(), torch.tensor([3, 0, 6, 1, 5, 2, 4])
    scores, values, group = draw_scores(mask, 1), noise(mask, 3), torch.arange(7) % 3

    def everything(rows: Tensor) -> list[Tensor]:
        rewards = shaped_rewards(scores[rows], mask[rows], None)
        advantages, returns = gae(rewards, values[rows], mask[rows], 0.99, 0.95)
        relative = group_relative_advantages(scores[rows], group[rows], mask[rows], scale_by_std=True)
        return [rewards, advantages, returns, relative]

    for one, other in zip(everything(torch.arange(7)), everything(order), strict=True):
        assert torch.equal(one[order], other)
