"""Losses, KL estimators and reported numbers, by hand and against the oracle."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from yaoki.rl.advantages import masked_moments
from yaoki.rl.losses import (
    KLEstimator,
    clipped_surrogate,
    entropy_from_logits,
    explained_variance,
    explained_variance_of,
    kl_estimate,
    kl_loss,
    masked_mean,
    token_mean,
    value_loss,
)

from . import oracle
from .ragged import checked, long_mask, masks, noise, seeds, widen

ESTIMATORS: tuple[KLEstimator, ...] = ("k1", "k2", "k3")


def one_row(*numbers: float) -> Tensor:
    """`[1, 1 + S]`: a prompt token, then the numbers."""
    return torch.tensor([[0.0, *numbers]], dtype=torch.float64)


def whole_response(num_tokens: int) -> Tensor:
    return torch.tensor([[False] + [True] * num_tokens])


def gradient(loss: Tensor, leaf: Tensor) -> Tensor:
    (result,) = torch.autograd.grad(loss, leaf)
    return result


# Clipped surrogate and mean over tokens


def test_the_surrogate_by_hand_on_both_sides_of_the_clip() -> None:
    # ratio, advantage -> token loss; clip at 0.8 and 1.2:
    # 1.5, +2: clipped to 1.2 -> -2.4, no gradient.     0.5, -1: clipped to 0.8 -> +0.8, no gradient.
    # 1.5, -1: the worse one is the plain -> +1.5.      0.5, +2: the worse one is the plain -> -1.0.
    # 1.1, +1: inside -> -1.1.
    ratios, advantages = one_row(1.5, 0.5, 1.5, 0.5, 1.1), one_row(2, -1, -1, 2, 1)
    old = one_row(-1, -2, -3, -4, -5)
    logprobs = (old + ratios.log().nan_to_num(neginf=0.0)).requires_grad_()
    mask = whole_response(5)
    result = clipped_surrogate(logprobs, old, advantages, mask, clip_eps=0.2)
    assert result.token_losses.tolist() == pytest.approx([-2.4, 0.8, 1.5, -1.0, -1.1])
    loss = token_mean(result.token_losses, mask, 10)
    assert loss.item() == pytest.approx((-2.4 + 0.8 + 1.5 - 1.0 - 1.1) / 10)
    assert result.num_clipped.item() == 2
    k3 = sum(r - 1 - math.log(r) for r in (1.5, 0.5, 1.5, 0.5, 1.1))
    assert result.approx_kl_sum.item() == pytest.approx(k3)
    # The gradient of ratio * A by the log-probability is ratio * A.
    expected = -one_row(0, 0, 1.5 * -1, 0.5 * 2, 1.1) / 10
    torch.testing.assert_close(gradient(loss, logprobs), expected)
    assert not result.num_clipped.requires_grad
    assert not result.approx_kl_sum.requires_grad


@checked
@given(masks(), seeds, st.sampled_from([0.05, 0.2]), st.integers(1, 50))
def test_surrogate_and_mean_match_the_oracle(
    mask: Tensor, seed: int, clip_eps: float, num_tokens: int
) -> None:
    logprobs, old, advantages = (noise(mask, seed + i, 0.3) for i in range(3))
    expected = oracle.policy_loss(
        logprobs.tolist(), old.tolist(), advantages.tolist(), mask, clip_eps, num_tokens
    )
    logprobs.requires_grad_()
    result = clipped_surrogate(logprobs, old, advantages, mask, clip_eps=clip_eps)
    loss = token_mean(result.token_losses, mask, num_tokens)
    assert result.token_losses.shape == (int(mask.sum()),)
    assert loss.item() == pytest.approx(expected[0], rel=1e-5, abs=1e-6)
    assert result.num_clipped.item() == expected[1]
    assert result.approx_kl_sum.item() == pytest.approx(expected[2], rel=1e-5, abs=1e-6)
    torch.testing.assert_close(gradient(loss, logprobs), torch.tensor(expected[3]), rtol=1e-5, atol=1e-7)


# Value loss


def test_value_loss_by_hand() -> None:
    # old 0, clip 0.2. Value, return -> squared error:
    # 0.1, 1: inside -> 0.81.    0.5, 1: kept at 0.2 -> 0.64 > 0.25, no gradient.
    # 0.5, 0: kept at 0.2 -> 0.04 < 0.25, so 0.25 with its gradient.    -0.5, -1: kept at -0.2 -> 0.64.
    values, returns = one_row(0.1, 0.5, 0.5, -0.5).requires_grad_(), one_row(1, 1, 0, -1)
    old, mask = one_row(0, 0, 0, 0), whole_response(4)
    clipped = value_loss(values, old, returns, mask, value_clip=0.2, num_tokens=8)
    assert clipped.item() == pytest.approx(0.5 * (0.81 + 0.64 + 0.25 + 0.64) / 8)
    torch.testing.assert_close(gradient(clipped, values), one_row(-0.9, 0, 0.5, 0) / 8)
    plain = value_loss(values, old, returns, mask, value_clip=None, num_tokens=8)
    assert plain.item() == pytest.approx(0.5 * (0.81 + 0.25 + 0.25 + 0.25) / 8)
    torch.testing.assert_close(gradient(plain, values), one_row(-0.9, -0.5, 0.5, 0.5) / 8)


@checked
@given(masks(), seeds, st.sampled_from([None, 0.0, 0.2, 1.0]), st.integers(1, 50))
def test_value_loss_matches_the_oracle(
    mask: Tensor, seed: int, value_clip: float | None, num_tokens: int
) -> None:
    values, old, returns = (noise(mask, seed + i) for i in range(3))
    expected = oracle.value_loss(
        values.tolist(), old.tolist(), returns.tolist(), mask, value_clip, num_tokens
    )
    values.requires_grad_()
    loss = value_loss(values, old, returns, mask, value_clip=value_clip, num_tokens=num_tokens)
    assert loss.item() == pytest.approx(expected[0], rel=1e-5, abs=1e-6)
    torch.testing.assert_close(gradient(loss, values), torch.tensor(expected[1]), rtol=1e-4, atol=1e-6)


# KL estimators


def test_kl_estimates_by_hand() -> None:
    # policy 0.5, reference 0.25: d = ln 2 = 0.6931; k2 = 0.2402; k3 = 0.5 - 1 + 0.6931 = 0.1931.
    # policy 0.25, reference 0.5: d = -0.6931; k2 = 0.2402; k3 = 2 - 1 - 0.6931 = 0.3069.
    policy, reference = torch.tensor([0.5, 0.25]).log(), torch.tensor([0.25, 0.5]).log()
    expected = {"k1": [0.6931, -0.6931], "k2": [0.2402, 0.2402], "k3": [0.1931, 0.3069]}
    for estimator in ESTIMATORS:
        assert kl_estimate(policy, reference, estimator).tolist() == pytest.approx(
            expected[estimator], abs=1e-4
        )


@checked
@given(st.floats(-20, 0), st.floats(-20, 0), st.sampled_from(ESTIMATORS))
def test_kl_estimates_match_the_oracle(logprob: float, ref: float, estimator: KLEstimator) -> None:
    policy, reference = torch.tensor([logprob, ref], dtype=torch.float64)
    actual = kl_estimate(policy, reference, estimator)
    assert actual.item() == pytest.approx(oracle.kl(logprob, ref, estimator), rel=1e-9, abs=1e-12)


@checked
@given(seeds)
def test_k1_and_k3_are_unbiased_and_k2_and_k3_are_never_negative(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    policy, reference = torch.randn(2, 9, generator=generator, dtype=torch.float64).log_softmax(-1)
    exact = (policy.exp() * (policy - reference)).sum().item()
    k1, k2, k3 = (kl_estimate(policy, reference, estimator) for estimator in ESTIMATORS)
    assert (policy.exp() * k1).sum().item() == pytest.approx(exact)
    assert (policy.exp() * k3).sum().item() == pytest.approx(exact)
    assert (k2 >= 0).all()
    assert (k3 >= 0).all()


def test_gradients_of_the_estimates_used_as_a_loss() -> None:
    """Over the policy's own samples: k1 gives nothing, k2 KL(policy || ref), k3 KL(ref || policy)."""
    generator = torch.Generator().manual_seed(5)
    logits, ref_logits = torch.randn(2, 9, generator=generator, dtype=torch.float64)
    logits.requires_grad_()
    policy, reference = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    reverse = gradient((policy.exp() * (policy - reference)).sum(), logits)
    logits_again = logits.detach().requires_grad_()
    forward = gradient((reference.exp() * (reference - logits_again.log_softmax(-1))).sum(), logits_again)
    expected = {"k1": torch.zeros_like(reverse), "k2": reverse, "k3": forward}
    for estimator in ESTIMATORS:
        policy = logits.log_softmax(-1)
        loss = (policy.detach().exp() * kl_estimate(policy, reference, estimator)).sum()
        torch.testing.assert_close(gradient(loss, logits), expected[estimator], rtol=1e-9, atol=1e-12)


@checked
@given(masks(), seeds, st.sampled_from(ESTIMATORS), st.integers(1, 50))
def test_kl_loss_matches_the_oracle(mask: Tensor, seed: int, estimator: KLEstimator, num_tokens: int) -> None:
    logprobs, ref = noise(mask, seed), noise(mask, seed + 1)
    pairs = [(logprobs[at].item(), ref[at].item()) for at in oracle.tokens(mask)]
    expected = sum(oracle.kl(logprob, other, estimator) for logprob, other in pairs) / num_tokens
    loss = kl_loss(logprobs, ref, mask, estimator=estimator, num_tokens=num_tokens)
    assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_a_padded_token_whose_estimate_overflows_does_no_harm() -> None:
    mask = torch.tensor([[False, True, False]])
    logprobs = torch.tensor([[-500.0, -1.0, -500.0]], requires_grad=True)
    loss = kl_loss(logprobs, torch.tensor([[0.0, -2.0, 0.0]]), mask, estimator="k3", num_tokens=1)
    assert loss.item() == pytest.approx(math.exp(-1))
    assert gradient(loss, logprobs).tolist() == [[0, pytest.approx(1 - math.exp(-1)), 0]]


# Entropy, means, explained variance


def test_entropy_by_hand_and_for_extreme_logits() -> None:
    minus_infinity = float("-inf")
    logits = torch.tensor(
        [[0.0, 0, 0, 0], [1e4, 1e4, -1e4, -1e4], [0, minus_infinity, minus_infinity, 0], [9e9, 0, 0, 0]],
        requires_grad=True,
    )
    entropy = entropy_from_logits(logits)
    assert entropy.tolist() == pytest.approx([math.log(4), math.log(2), math.log(2), 0.0])
    assert gradient(entropy.sum(), logits).isfinite().all()
    assert entropy_from_logits(torch.zeros(2, 3, 5, dtype=torch.bfloat16)).dtype == torch.float32
    assert entropy_from_logits(torch.zeros(2, 3, 5)).shape == (2, 3)


@checked
@given(st.lists(st.floats(-50, 50), min_size=1, max_size=8))
def test_entropy_matches_the_oracle(logits: list[float]) -> None:
    actual = entropy_from_logits(torch.tensor(logits, dtype=torch.float64))
    assert actual.item() == pytest.approx(oracle.entropy(logits), rel=1e-9, abs=1e-12)


def test_masked_mean_divides_by_the_given_count() -> None:
    x = torch.tensor([[float("nan"), 1.0, 2.0]])
    assert masked_mean(x, whole_response(2), num_tokens=6).item() == 0.5


def test_explained_variance_by_hand() -> None:
    # returns 0 1 2 3 have variance 5/4; residuals 0 1 0 1 have variance 1/4; a constant offset is free.
    returns, values, mask = one_row(0, 1, 2, 3), one_row(5, 5, 7, 7), whole_response(4)
    assert explained_variance(values, returns, mask) == pytest.approx(1 - 0.25 / 1.25)
    assert explained_variance(returns, returns, mask) == 1.0
    assert explained_variance(one_row(4, 4, 4, 4), returns, mask) == pytest.approx(0.0)


def test_explained_variance_is_zero_when_there_is_nothing_to_explain() -> None:
    mask = whole_response(3)
    assert explained_variance(one_row(1, 2, 3), one_row(0.1, 0.1, 0.1), mask) == 0.0
    assert explained_variance(one_row(1, 2, 3), one_row(1, 2, 3), torch.zeros_like(mask)) == 0.0


@checked
@given(masks(), seeds)
def test_explained_variance_matches_the_oracle_and_adds_up(mask: Tensor, seed: int) -> None:
    returns = noise(mask, seed)
    values = returns + noise(mask, seed + 1, 0.5)
    chosen = returns[mask].double().tolist()
    actual = explained_variance(values, returns, mask)
    if len(set(chosen)) < 2:
        assert actual == 0.0
        return
    residuals = (returns - values)[mask].double().tolist()
    assert actual == pytest.approx(1 - oracle.variance(residuals) / oracle.variance(chosen), abs=1e-9)
    parts = [
        masked_moments(x[:1], mask[:1]) + masked_moments(x[1:], mask[1:]) for x in (returns - values, returns)
    ]
    assert explained_variance_of(*parts) == pytest.approx(actual, abs=1e-9)


# What must change no bit


def surrogate_mean(x: Tensor, old: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    surrogate = clipped_surrogate(x, old, advantages, mask, clip_eps=0.2)
    return token_mean(surrogate.token_losses, mask, 99)


def losses(estimator: KLEstimator) -> dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]]:
    """Every loss as a function of a column with a gradient, two constant columns and the mask."""
    return {
        "policy": surrogate_mean,
        "value": lambda x, a, b, mask: value_loss(x, a, b, mask, value_clip=0.2, num_tokens=99),
        "kl": lambda x, a, b, mask: kl_loss(x, a, mask, estimator=estimator, num_tokens=99),
    }


@pytest.mark.parametrize("name", ["policy", "value", "kl"])
@pytest.mark.parametrize("extra", [1, 3, 8, 67])
def test_padding_changes_no_bit_of_loss_or_gradient(name: str, extra: int) -> None:
    mask, loss_of = long_mask(), losses("k2")[name]
    x, a, b = (noise(mask, seed, 0.3) for seed in range(3))
    wide = [widen(column, extra) for column in (x, a, b, mask)]
    x.requires_grad_()
    wide[0].requires_grad_()
    narrow_loss, wide_loss = loss_of(x, a, b, mask), loss_of(*wide)
    assert torch.equal(narrow_loss, wide_loss)
    narrow_gradient, wide_gradient = gradient(narrow_loss, x), gradient(wide_loss, wide[0])
    assert torch.equal(narrow_gradient, wide_gradient[:, :61])
    assert not wide_gradient[:, 61:].any()
    assert not narrow_gradient[~mask].any()


def test_padding_changes_no_bit_of_the_metrics() -> None:
    mask = long_mask()
    x, a, b = (noise(mask, seed, 0.3) for seed in range(3))
    for extra in (1, 8, 67):
        wide = [widen(column, extra) for column in (x, a, b, mask)]
        narrow_result = clipped_surrogate(x, a, b, mask, clip_eps=0.2)
        wide_result = clipped_surrogate(*wide, clip_eps=0.2)
        assert torch.equal(narrow_result.num_clipped, wide_result.num_clipped)
        assert torch.equal(narrow_result.approx_kl_sum, wide_result.approx_kl_sum)
        assert explained_variance(x, a, mask) == explained_variance(wide[0], wide[1], wide[3])


def test_rows_without_response_tokens_add_nothing() -> None:
    empty = torch.zeros(2, 3, dtype=torch.bool)
    for loss_of in losses("k3").values():
        x = noise(empty, 1).requires_grad_()
        loss = loss_of(x, noise(empty, 2), noise(empty, 3), empty)
        assert loss.item() == 0
        assert not gradient(loss, x).any()
