"""Tokens by inverse CDF: the right distribution, exact edges, and nothing from outside of the nucleus."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from yaoki.errors import NonFiniteError
from yaoki.rollout.engines.sampling import sample_tokens
from yaoki.seeding import Purpose, seed, uniforms

LAST = 1.0 - 2.0**-53
"""The largest number that `uniforms` can give."""

LOGITS = [0.3, -1.2, 2.0, 0.3, -4.0, 1.1]


def probabilities(logits: list[float], temperature: float = 1.0, top_p: float = 1.0) -> list[float]:
    """Temperature, then the smallest set that holds top_p, in plain Python."""
    top = max(logits)
    weights = [math.exp((logit - top) / temperature) for logit in logits]
    shares = [weight / sum(weights) for weight in weights]
    kept: set[int] = set()
    for token in sorted(range(len(shares)), key=lambda token: (-shares[token], token)):
        if sum(shares[other] for other in kept) < top_p:
            kept.add(token)
    total = sum(shares[token] for token in kept)
    return [share / total if token in kept else 0.0 for token, share in enumerate(shares)]


def sample(
    logits: list[float], numbers: list[float], temperature: float = 1.0, top_p: float = 1.0
) -> tuple[list[int], list[float]]:
    rows = torch.tensor(logits).expand(len(numbers), -1)
    tokens, logprobs = sample_tokens(rows, torch.tensor(numbers, dtype=torch.float64), temperature, top_p)
    assert tokens.dtype == torch.int64
    assert logprobs.dtype == torch.float32
    return tokens.tolist(), logprobs.tolist()


@pytest.mark.parametrize(
    ("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (2.0, 1.0), (1.0, 0.8), (3.0, 0.6)]
)
def test_the_distribution(temperature: float, top_p: float) -> None:
    count = 20_000
    seeds = np.array([seed(3, Purpose.ROLLOUT, sample) for sample in range(count)], np.uint64)
    tokens, _ = sample(LOGITS, uniforms(seeds, 7).tolist(), temperature, top_p)
    observed = np.bincount(tokens, minlength=len(LOGITS))
    expected = np.array(probabilities(LOGITS, temperature, top_p)) * count
    inside = expected > 0
    assert observed[~inside].sum() == 0
    # At most 5 degrees of freedom: above 25.7 once in 10,000 times; the seeds are fixed.
    assert ((observed - expected)[inside] ** 2 / expected[inside]).sum() < 25.7


def test_the_edges() -> None:
    assert sample([0.0, 0.0, 0.0], [0.0, LAST])[0] == [0, 2]
    never = -math.inf
    assert sample([never, 0.0, 0.0, never], [0.0, LAST])[0] == [1, 2]
    assert sample([-1e4, 0.0, never, 0.0, -1e4], [0.0, 0.5 - 1e-9, 0.5 + 1e-9, LAST])[0] == [1, 1, 3, 3]
    # Far apart: only one token has any weight.
    assert sample([-50.0, 50.0], [0.0, 0.5, LAST]) == ([1, 1, 1], [0.0, 0.0, 0.0])


numbers = st.floats(0, LAST)
logit_lists = st.lists(st.floats(-60, 20, width=32) | st.just(-math.inf), min_size=1, max_size=12).filter(
    lambda logits: max(logits) > -math.inf
)


@given(logit_lists, numbers, st.sampled_from([0.3, 1.0, 1.7]))
def test_against_the_running_sum(logits: list[float], number: float, temperature: float) -> None:
    (token,), (logprob,) = sample(logits, [number], temperature)
    shares = probabilities(logits, temperature)
    assert shares[token] > 2.0**-41
    below = math.fsum(shares[:token])
    # The rounding of float32 log-probabilities moves the borders a little.
    assert below - 1e-5 <= number <= below + shares[token] + 1e-5
    assert logprob == pytest.approx(math.log(shares[token]), abs=1e-4)


@given(logit_lists, st.floats(0.05, 0.99), numbers)
def test_nothing_from_outside_of_the_nucleus(logits: list[float], top_p: float, number: float) -> None:
    logits = [round(logit, 3) for logit in logits]  # which of two almost equal ones comes first is rounding
    (token,), (logprob,) = sample(logits, [number], 1.0, top_p)
    # A little more is allowed, for sets that hold top_p only up to rounding.
    assert probabilities(logits, 1.0, min(top_p + 1e-5, 1.0))[token] > 0
    assert logprob == pytest.approx(math.log(probabilities(logits)[token]), abs=1e-4)


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.01, {3}), (0.49, {3}), (0.51, {0, 3}), (0.76, {0, 1, 3}), (1.0, {0, 1, 2, 3})]
)
def test_the_nucleus_is_the_smallest_set(top_p: float, kept: set[int]) -> None:
    """0.25, 0.125, 0.125, 0.5; of equal tokens the one with the smaller id comes first."""
    logits = [math.log(p) for p in (0.25, 0.125, 0.125, 0.5)]
    grid = [place / 1000 for place in range(1000)]
    tokens, logprobs = sample(logits, grid, 1.0, top_p)
    assert set(tokens) == kept
    # The log-probability is that of the whole distribution: what the learner computes.
    assert logprobs == pytest.approx([logits[token] for token in tokens], abs=1e-6)


@pytest.mark.parametrize(("top_p", "kept"), [(0.25, {0}), (0.5, {0, 1}), (0.75, {0, 1, 2})])
def test_a_set_that_holds_top_p_exactly_is_enough(top_p: float, kept: set[int]) -> None:
    grid = [place / 100 for place in range(100)]
    assert set(sample([0.0] * 4, grid, 1.0, top_p)[0]) == kept


@given(st.integers(0, 2**32), st.integers(1, 9), st.sampled_from([1.0, 0.9]))
def test_a_row_does_not_depend_on_its_neighbours(seed_value: int, rows: int, top_p: float) -> None:
    generator = torch.Generator().manual_seed(seed_value)
    logits = 3 * torch.randn(rows, 261, generator=generator)
    drawn = torch.rand(rows, dtype=torch.float64, generator=generator)
    together = sample_tokens(logits, drawn, 0.8, top_p)
    for row in range(rows):
        alone = sample_tokens(logits[row : row + 1], drawn[row : row + 1], 0.8, top_p)
        assert torch.equal(alone[0], together[0][row : row + 1])
        assert torch.equal(alone[1], together[1][row : row + 1])


def test_logprobs_are_float32_whatever_the_logits_are() -> None:
    logits = torch.tensor([LOGITS]).bfloat16()
    tokens, logprobs = sample_tokens(logits, torch.tensor([0.4], dtype=torch.float64), 0.7, 1.0)
    expected = torch.log_softmax(logits.double() / 0.7, -1)[0, tokens[0]]
    assert logprobs.dtype == torch.float32
    assert logprobs[0].item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_an_error(value: float) -> None:
    logits = torch.zeros(3, 5)
    logits[1, 2] = value
    with pytest.raises(NonFiniteError, match="logits are not finite") as caught:
        sample_tokens(logits, torch.zeros(3, dtype=torch.float64), 1.0, 1.0)
    assert "fork" in str(caught.value.hint)


def test_a_token_that_is_ruled_out_is_no_error() -> None:
    logits = torch.zeros(2, 4)
    logits[:, 0] = -float("inf")
    tokens, _ = sample_tokens(logits, torch.tensor([0.0, 0.99], dtype=torch.float64), 1.0, 1.0)
    assert tokens.tolist() == [1, 3]
