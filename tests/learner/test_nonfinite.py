"""A loss or a gradient that is not finite: an error, or that optimizer step is skipped and counted."""

import math

import pytest
import torch

from tests.support.batches import scored
from tests.support.learners import config, learner, never, rollouts
from yaoki.errors import NonFiniteError, StopRequested
from yaoki.learner.network import TrainedNetwork


def poison(network: TrainedNetwork) -> None:
    """Every token goes through the last norm."""
    network.weights()["model.norm.weight"][0] = math.nan


@pytest.mark.parametrize("network", ["policy", "critic"])
def test_it_stops_with_the_numbers(network: str) -> None:
    made = learner(config())
    experience = scored(made)
    poison(getattr(made, network))
    with pytest.raises(NonFiniteError, match=rf"the {network}'s loss is nan.*its gradient nan") as caught:
        made.update(experience, 1, 0.0, never)
    assert "train.on_nonfinite=skip" in str(caught.value.hint)


def test_such_steps_can_be_skipped() -> None:
    made = learner(config("train.on_nonfinite=skip"))
    assert made.critic is not None
    experience = scored(made)
    poison(made.critic)
    before = {name: tensor.clone() for name, tensor in made.critic.weights().items()}

    stats = made.update(experience, 1, 0.0, never)

    assert stats.critic is None
    assert stats.policy is not None
    assert stats.num_skipped == config().critic.num_mini_batches == 12
    for name, tensor in made.critic.weights().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, equal_nan=True)
    assert made.critic.moments() == {}
    assert all(p.grad is None for p in made.critic.model.parameters())


def test_an_infinite_gradient_alone_is_enough() -> None:
    """The loss is finite, its gradient is not: sqrt at 0."""
    made = learner(config())
    trained = made.policy
    for parameter in trained.model.parameters():
        parameter.grad = torch.full_like(parameter, math.inf)
    with pytest.raises(NonFiniteError, match=r"loss is 1\.0"):
        made._apply(trained, "policy", 1.0)


def test_a_finite_update_skips_nothing() -> None:
    made = learner(config("train.on_nonfinite=skip"))
    assert made.update(scored(made), 1, 0.0, never).num_skipped == 0


@pytest.mark.parametrize("phase", ["score", "update"])
def test_a_stop_is_seen_between_micro_batches(phase: str) -> None:
    made = learner(config("train.micro_batch_tokens=20"))
    calls = 0

    def second_time() -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise StopRequested("enough")

    experience = scored(made)
    work = {
        "score": lambda: made.score(rollouts(), second_time),
        "update": lambda: made.update(experience, 1, 0.0, second_time),
    }
    with pytest.raises(StopRequested):
        work[phase]()
    assert calls == 2
