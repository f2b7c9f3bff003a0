"""Accuracy, its interval and pass@k, against slow and plain ways to say the same."""

import math
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.rollouts import batch, rollout
from yaoki.train.accuracy import accuracy, interval, pass_at_k
from yaoki.types import VerdictReason

Z = 1.959964


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(case: tuple[int, int, int]) -> None:
    num_samples, num_correct, k = case
    samples = [index < num_correct for index in range(num_samples)]
    subsets = list(combinations(samples, k))
    assert pass_at_k(num_samples, num_correct, k) == pytest.approx(
        sum(any(subset) for subset in subsets) / len(subsets)
    )


groups = st.integers(1, 6).flatmap(
    lambda n: st.lists(st.lists(st.integers(0, 1), min_size=n, max_size=n), min_size=1, max_size=12)
)


@given(groups)
def test_accuracy_of_a_batch(rewards: list[list[int]]) -> None:
    found = accuracy(batch(rewards))

    num_samples = len(rewards[0])
    assert (found.num_tasks, found.num_samples) == (len(rewards), num_samples)
    assert found.pass_at_1 == pytest.approx(sum(map(sum, rewards)) / (len(rewards) * num_samples))
    assert sorted(found.pass_at_k) == [k for k in (1, 2, 4) if k <= num_samples]
    assert found.pass_at_k[1] == pytest.approx(found.pass_at_1)
    for k, value in found.pass_at_k.items():
        oracle = [any(subset) for group in rewards for subset in combinations(group, k)]
        assert value == pytest.approx(sum(oracle) / len(oracle))
    values = [found.pass_at_k[k] for k in sorted(found.pass_at_k)]
    assert values == pytest.approx(sorted(values)), "more tries cannot solve less"
    assert 0 <= found.low <= found.pass_at_1 + 1e-12
    assert found.pass_at_1 <= found.high + 1e-12 <= 1 + 1e-9


def test_what_counts_is_the_verdict_and_not_the_reward() -> None:
    right, wrong = VerdictReason.CORRECT, VerdictReason.WRONG
    judged = [(0.3, right), (0.9, wrong), (-1.0, wrong), (5.0, wrong)]
    found = accuracy(
        [rollout(0, sample, reward=reward, reason=reason) for sample, (reward, reason) in enumerate(judged)]
    )
    assert found.pass_at_1 == 0.25
    assert found.pass_at_k == {1: 0.25, 2: 0.5, 4: 1.0}


@given(st.lists(st.integers(0, 1), min_size=1, max_size=200))
def test_one_sample_a_task_gives_wilsons_interval(rewards: list[int]) -> None:
    """Its ends are the shares from which the observed one is exactly z standard errors away."""
    n, mean = len(rewards), sum(rewards) / len(rewards)
    for end in interval([float(reward) for reward in rewards]):
        assert abs(mean - end) == pytest.approx(Z * math.sqrt(end * (1 - end) / n), abs=1e-7)


def test_wilsons_interval_by_hand() -> None:
    """8 of 10: the textbook's 0.490 to 0.943."""
    assert interval([1.0] * 8 + [0.0] * 2) == pytest.approx((0.4902, 0.9433), abs=1e-4)


@given(st.lists(st.integers(0, 4), min_size=2, max_size=50))
def test_sampling_a_task_often_never_widens_the_interval(correct: list[int]) -> None:
    """4 samples a task, compared with one trial per task of the same mean."""
    means = [c / 4 for c in correct]
    n, mean = len(means), sum(means) / len(means)
    low, high = interval(means)
    width = 2 * Z / (1 + Z**2 / n) * math.sqrt(mean * (1 - mean) / n + Z**2 / (4 * n**2))
    assert 0 <= low <= mean + 1e-12
    assert mean <= high + 1e-12 <= 1 + 1e-9
    assert high - low <= width + 1e-9


@pytest.mark.parametrize("mean", [0.0, 1.0])
def test_all_or_nothing_still_has_a_width(mean: float) -> None:
    low, high = interval([mean] * 20)
    assert high - low == pytest.approx(Z**2 / (20 + Z**2))
