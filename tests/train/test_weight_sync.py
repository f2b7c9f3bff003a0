"""A push is believed when engine and learner read a text alike."""

from typing import Any

import pytest
import torch

from tests.support.learners import causal_lm, config, learner
from yaoki.errors import WeightSyncError
from yaoki.models.builtin import tiny_tokenizer
from yaoki.rollout.engine import Sampling
from yaoki.rollout.engines.transformers import TransformersEngine
from yaoki.train.weight_sync import WeightSync, tolerance

PROBE = tuple(range(3, 30))


class ForgetfulEngine(TransformersEngine):
    """Says that it has taken the weights."""

    def load_weights(self, weights: object, policy_version: int) -> None:
        self.policy_version = policy_version


@pytest.mark.parametrize("is_forgetful", [False, True])
def test_a_push(is_forgetful: bool) -> None:
    made = learner(config())
    kind = ForgetfulEngine if is_forgetful else TransformersEngine
    engine = kind(causal_lm(9), tiny_tokenizer(), Sampling(1.0, 1.0, 4, ()))
    sync = WeightSync(engine, made, PROBE, tolerance("float32"))
    if is_forgetful:
        with pytest.raises(WeightSyncError, match="after the push of policy version 3"):
            sync.push(3)
        return
    sync.push(3)
    assert engine.policy_version == 3
    made.policy.weights()["model.norm.weight"].mul_(1.5)
    sync.push(4)
    with torch.no_grad():
        made.policy.weights()["model.norm.weight"].mul_(1.5)
    assert engine.logprobs(PROBE) != []


def test_the_learner_makes_room_before_the_engine_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """With train.offload the memory that the learner leaves is what the engine's cache is put into."""
    made, calls = learner(config()), []
    engine = TransformersEngine(causal_lm(9), tiny_tokenizer(), Sampling(1.0, 1.0, 4, ()))
    for owner, name in ((made, "weights"), (made, "rest"), (engine, "logprobs")):
        real = getattr(owner, name)

        def noted(*arguments: object, real: Any = real, name: str = name) -> object:
            calls.append(name)
            return real(*arguments)

        monkeypatch.setattr(owner, name, noted)
    WeightSync(engine, made, PROBE, tolerance("float32")).push(0)
    assert calls == ["weights", "rest", "logprobs"]
