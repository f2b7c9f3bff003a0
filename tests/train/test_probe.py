"""The probe: an engine that holds other weights than it should is found out."""

import math
from collections.abc import Sequence

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from yaoki.errors import WeightSyncError
from yaoki.models.builtin import tiny_random
from yaoki.models.policy import model_logprobs, token_logprobs
from yaoki.rollout.engine import Sampling
from yaoki.rollout.engines.transformers import TransformersEngine
from yaoki.train.weight_sync import PROBE_TOKENS, Tolerance, check_weights, probe_ids, tolerance

TOLERANCE = tolerance("float32")


@pytest.fixture
def engine(learner_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> TransformersEngine:
    made = TransformersEngine(tiny_random(9), tokenizer, Sampling(1.0, 1.0, 12, ()))
    made.load_weights(learner_model.state_dict().items(), 3)
    return made


def test_the_right_weights_pass(
    engine: TransformersEngine, learner_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    probe = probe_ids(tokenizer)
    assert 10 < len(probe) <= PROBE_TOKENS
    expected = model_logprobs(learner_model, probe)
    with torch.no_grad():
        found, _ = token_logprobs(learner_model, torch.tensor([list(probe)]), 1, 1.0)
    assert expected == found[0].tolist()
    assert check_weights(engine, 3, probe, expected, TOLERANCE) == 0.0


@pytest.mark.parametrize(
    "name",
    ["model.layers.0.self_attn.q_proj.bias", "model.layers.2.mlp.down_proj.weight", "model.norm.weight"],
)
def test_one_old_tensor_is_noticed(
    engine: TransformersEngine,
    learner_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
) -> None:
    weights = dict(learner_model.state_dict())
    weights[name] = weights[name] + 0.1 * torch.randn(
        weights[name].shape, generator=torch.Generator().manual_seed(1)
    )
    engine.load_weights(weights.items(), 3)
    probe = probe_ids(tokenizer)
    with pytest.raises(WeightSyncError, match="push of policy version 3") as caught:
        check_weights(engine, 3, probe, model_logprobs(learner_model, probe), TOLERANCE)
    assert caught.value.hint


def test_another_version_is_an_error_even_with_the_right_weights(
    engine: TransformersEngine, learner_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    probe = probe_ids(tokenizer)
    expected = model_logprobs(learner_model, probe)
    for version in (2, 4, -1):
        with pytest.raises(WeightSyncError, match=f"version 3, the policy is at {version}"):
            check_weights(engine, version, probe, expected, TOLERANCE)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_no_agreement(
    engine: TransformersEngine,
    learner_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    wrong: float,
) -> None:
    probe = probe_ids(tokenizer)
    expected = model_logprobs(learner_model, probe)
    for place in (0, 5, len(expected) - 1):
        spoilt = [*expected[:place], wrong, *expected[place + 1 :]]
        with pytest.raises(WeightSyncError):
            check_weights(engine, 3, probe, spoilt, Tolerance(math.inf, math.inf, math.inf))


def test_dropout_does_not_disturb(tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny_random(1)
    for layer in model.modules():
        if hasattr(layer, "attention_dropout"):
            layer.attention_dropout = 0.5
    probe = probe_ids(tokenizer)
    assert model_logprobs(model.train(), probe) == model_logprobs(model.train(), probe)


def test_the_tolerance_lies_between_the_bounds(
    engine: TransformersEngine, learner_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    probe = probe_ids(tokenizer)
    expected = model_logprobs(learner_model, probe)

    def shifted(by: float) -> Sequence[float]:
        return [expected[0] + by, *expected[1:]]

    largest = TOLERANCE.largest
    assert check_weights(engine, 3, probe, shifted(0.9 * largest), TOLERANCE) > 0.5 * largest
    for by in (1.1 * largest, -1.1 * largest):
        with pytest.raises(WeightSyncError):
            check_weights(engine, 3, probe, shifted(by), TOLERANCE)


@pytest.mark.parametrize("size", [1, 4, 6])
def test_rounding_to_bfloat16_is_no_other_weights(size: int, tokenizer: PreTrainedTokenizerBase) -> None:
    """Also where the model is sure of itself, so that a token may be more than a nat off."""
    model = tiny_random(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(size if parameter.ndim == 2 else 1)
    engine = TransformersEngine(tiny_random(9), tokenizer, Sampling(1.0, 1.0, 12, ()))
    probe = probe_ids(tokenizer)
    with torch.autocast("cpu", torch.bfloat16):
        expected = model_logprobs(model, probe)
    engine.load_weights(model.state_dict().items(), 3)
    gap = check_weights(engine, 3, probe, expected, tolerance("bfloat16"))
    assert (gap > 1.0) == (size == 6)
    other = dict(tiny_random(5).named_parameters())
    for name in [name for name, tensor in other.items() if tensor.ndim == 2][1:8]:
        wrong = {**model.state_dict(), name: size * other[name]}
        engine.load_weights(wrong.items(), 3)
        if size > 1:  # of a model that says nothing, no matrix matters
            with pytest.raises(WeightSyncError, match="on average, which rounding does not explain"):
                check_weights(engine, 3, probe, expected, tolerance("bfloat16"))
