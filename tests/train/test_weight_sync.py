"""A push is believed when engine and learner give a text the same log-probabilities."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.attempts import config_of, train_here
from tests.support.learners import causal_lm, config, learner
from yaoki.errors import NonFiniteError, WeightSyncError
from yaoki.learner.learner import Learner
from yaoki.models.builtin import tiny_tokenizer
from yaoki.models.policy import model_logprobs
from yaoki.rollout.engine import Sampling
from yaoki.rollout.engines.transformers import TransformersEngine
from yaoki.train.weight_sync import WeightSync, tolerance

PROBE = tuple(range(3, 30))


class ForgetfulEngine(TransformersEngine):
    """Says that it has taken the weights."""

    def load_weights(self, weights: object, policy_version: int) -> None:
        self.policy_version = policy_version


def sync_of(kind: type[TransformersEngine], made: Learner) -> WeightSync:
    engine = kind(causal_lm(9), tiny_tokenizer(), Sampling(1.0, 1.0, 4, ()))
    return WeightSync(engine, made, PROBE, tolerance("float32"))


def test_every_push_is_verified_by_what_the_learner_says_of_the_probe() -> None:
    made = learner(config())
    sync = sync_of(TransformersEngine, made)
    first = sync.push(3)
    assert sync.engine.policy_version == 3
    assert first == model_logprobs(made.policy.model, PROBE)
    sync.verify(3, first)

    with torch.no_grad():
        made.policy.weights()["model.norm.weight"].mul_(1.5)
    second = sync.push(4)
    assert second != first
    sync.verify(4, second)
    with pytest.raises(WeightSyncError, match="after the push of policy version 4"):
        sync.verify(4, first)
    with pytest.raises(WeightSyncError, match="weights of version 4, the policy is at 3"):
        sync.verify(3, second)


def test_an_engine_that_did_not_take_the_weights_is_found_out() -> None:
    sync = sync_of(ForgetfulEngine, learner(config()))
    expected = sync.push(3)
    with pytest.raises(WeightSyncError, match="after the push of policy version 3"):
        sync.verify(3, expected)


def test_a_policy_that_is_not_finite_is_no_fault_of_the_engine() -> None:
    made = learner(config())
    made.policy.weights()["model.norm.weight"][0] = math.nan
    with pytest.raises(NonFiniteError, match="log-probabilities are not finite") as caught:
        sync_of(TransformersEngine, made).push(3)
    assert "fork" in str(caught.value.hint)


def test_the_learner_is_offloaded_before_the_engine_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With train.offload the memory that the learner frees is what the engine's cache is put into."""
    calls: list[str] = []
    for owner, name in ((Learner, "weights"), (Learner, "offload"), (TransformersEngine, "logprobs")):
        real = getattr(owner, name)

        def noted(*arguments: object, real: Any = real, name: str = name) -> object:
            calls.append(name)
            return real(*arguments)

        monkeypatch.setattr(owner, name, noted)
    train_here(tmp_path / "run", config_of("train.steps=1", "train.offload=true"))
    assert calls == ["weights", "offload", "logprobs"] * 2, "at the start and after the step"
