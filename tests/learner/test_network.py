"""Learning rates by hand, and an optimizer that goes on exactly where another one stood."""

import pytest
import torch
from torch import Tensor

from tests.support.learners import bits, causal_lm, config, same_bits
from yaoki.checkpoint.io.reader import restore_into
from yaoki.learner.network import LRSchedule, TrainedNetwork


@pytest.mark.parametrize(
    ("num_batches", "lr"),
    [(0, 2e-8), (1, 4e-8), (24, 5e-7), (48, 9.8e-7), (49, 1e-6), (50, 1e-6), (10**6, 1e-6)],
)
def test_constant_after_a_warm_up(num_batches: int, lr: float) -> None:
    """Open-Reasoner-Zero's: 50 steps up to 1e-6, then flat."""
    assert LRSchedule(1e-6, "constant", 50, 0, 0.0).lr(num_batches) == pytest.approx(lr, rel=1e-12)


@pytest.mark.parametrize(
    ("num_batches", "lr"),
    [(0, 0.25), (1, 0.5), (2, 0.75), (3, 1.0), (4, 1.0), (6, 0.8), (8, 0.6), (11, 0.3), (12, 0.2), (99, 0.2)],
)
def test_linear_down_to_a_floor(num_batches: int, lr: float) -> None:
    assert LRSchedule(1.0, "linear", 4, 12, 0.2).lr(num_batches) == pytest.approx(lr, rel=1e-12)


def test_no_warm_up() -> None:
    assert LRSchedule(3.0, "constant", 0, 0, 0.0).lr(0) == 3.0
    assert LRSchedule(3.0, "linear", 0, 3, 0.0).lr(0) == 3.0
    assert LRSchedule(3.0, "linear", 0, 3, 0.0).lr(3) == 0.0


IDS = torch.randint(0, 40, (4, 9), generator=torch.Generator().manual_seed(0))


def network(*overrides: str, seed: int = 1) -> TrainedNetwork:
    return TrainedNetwork(causal_lm(seed), config(*overrides).policy)


def train(trained: TrainedNetwork, batches: int, first: int = 0) -> list[float]:
    norms = []
    for batch in range(first, first + batches):
        trained.model(input_ids=IDS, labels=IDS.roll(batch, 0)).loss.backward()
        norms.append(trained.clip_gradients())
        trained.step()
        trained.num_batches += 1
    return norms


def cloned(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def continued(weights: dict[str, Tensor], moments: dict[str, Tensor], num_batches: int) -> TrainedNetwork:
    """A fresh network that takes over what another one had."""
    fresh = network(seed=7)
    fresh.model.load_state_dict(weights)
    if moments:
        fresh.make_moments()
        restore_into(fresh.moments(), moments)
    fresh.num_batches = num_batches
    return fresh


def test_a_restored_optimizer_takes_the_same_steps() -> None:
    trained = network()
    train(trained, 3)
    weights, moments = cloned(trained.weights()), cloned(trained.moments())
    unbroken = train(trained, 2, first=3)
    restored = continued(weights, moments, 3)
    assert train(restored, 2, first=3) == unbroken
    assert same_bits(bits(restored), bits(trained))
    # The control: with the weights alone the next step is another one.
    without = continued(weights, {}, 3)
    train(without, 2, first=3)
    assert not same_bits(bits(without), bits(trained))


def test_what_is_restored_is_copied() -> None:
    trained = network()
    train(trained, 2)
    weights, moments = cloned(trained.weights()), cloned(trained.moments())
    restored = continued(weights, moments, 2)
    before = bits(restored)
    for tensor in moments.values():
        tensor.zero_()
    assert same_bits(bits(restored), before)
    train(trained, 1, first=2)
    assert same_bits(bits(restored), before)


def test_moments_are_named_and_live() -> None:
    trained = network()
    assert trained.moments() == {}
    train(trained, 1)
    names = {name for name, _ in trained.model.named_parameters()}
    assert trained.moments().keys() == {f"{m}/{n}" for m in ("exp_avg", "exp_avg_sq", "step") for n in names}
    assert "lm_head.weight" not in names
    live = trained.moments()["exp_avg/model.norm.weight"]
    before = live.clone()
    train(trained, 1, first=1)
    assert not torch.equal(live, before)
    assert trained.moments()["step/model.norm.weight"].item() == 2


def test_weights_are_live_and_tied_ones_one() -> None:
    trained = network()
    live = trained.weights()
    assert live["lm_head.weight"].data_ptr() == live["model.embed_tokens.weight"].data_ptr()
    before = cloned(live)
    train(trained, 1)
    assert all(not torch.equal(live[name], before[name]) for name in live)
    assert not any(tensor.requires_grad for tensor in live.values())


def test_restoring_nothing_is_a_fresh_start() -> None:
    trained, fresh = network(), network()
    weights = cloned(trained.weights())
    train(trained, 3)
    trained.model.load_state_dict(weights)
    trained.drop_moments()
    trained.num_batches = 0
    assert trained.moments() == {}
    assert train(trained, 1) == train(fresh, 1)
    assert same_bits(bits(trained), bits(fresh))


def test_the_first_step_by_hand() -> None:
    """AdamW from zero moments: lr * g / (|g| + eps), with g scaled to the allowed norm."""
    trained = network("policy.max_grad_norm=0.5", "policy.lr=0.01", "policy.eps=0.1", "policy.warmup_steps=4")
    before = cloned(trained.weights())
    trained.model(input_ids=IDS, labels=IDS).loss.backward()
    grads = {name: p.grad.double() for name, p in trained.model.named_parameters() if p.grad is not None}
    norm = torch.stack([grad.square().sum() for grad in grads.values()]).sum().sqrt().item()
    assert norm > 0.5
    assert trained.lr == pytest.approx(0.0025)
    assert trained.clip_gradients() == pytest.approx(norm, rel=1e-5)
    trained.step()
    for name, grad in grads.items():
        scaled = grad * 0.5 / norm
        expected = before[name].double() - 0.0025 * scaled / (scaled.abs() + 0.1)
        torch.testing.assert_close(trained.weights()[name].double(), expected, rtol=1e-5, atol=1e-7)
    assert all(p.grad is None for p in trained.model.parameters())


def test_weight_decay_and_betas_are_those_of_the_config() -> None:
    trained = network("policy.weight_decay=0.1", "policy.betas=[0.5, 0.75]", "policy.max_grad_norm=1e9")
    before = cloned(trained.weights())
    for parameter in trained.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    trained.step()
    for name, tensor in trained.weights().items():
        torch.testing.assert_close(tensor, before[name] * (1 - 0.01 * 0.1))
    for parameter in trained.model.parameters():
        parameter.grad = torch.full_like(parameter, 2.0)
    trained.step()
    assert trained.moments()["exp_avg/model.norm.weight"].unique().tolist() == [1.0]
    assert trained.moments()["exp_avg_sq/model.norm.weight"].unique().tolist() == [1.0]


def test_the_rate_follows_the_batches_not_the_optimizer_steps() -> None:
    trained = network("policy.warmup_steps=10")
    for _ in range(3):
        trained.model(input_ids=IDS, labels=IDS).loss.backward()
        trained.step()
    assert trained.lr == pytest.approx(0.001)
    trained.num_batches = 4
    assert trained.lr == pytest.approx(0.005)
