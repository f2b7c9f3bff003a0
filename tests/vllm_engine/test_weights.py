"""Weights in and out of vLLM: a push that went wrong is noticed, and nothing else in the process changes."""

import random
import signal
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tests.support.requests import no_poll, requests
from yaoki.errors import UsageError, WeightSyncError, YaokiError
from yaoki.models.builtin import tiny_random
from yaoki.models.policy import model_logprobs
from yaoki.rollout.engine import Sampling
from yaoki.rollout.engines.vllm import VllmEngine
from yaoki.rollout.engines.vllm_weights import VllmOptions
from yaoki.train.weight_sync import check_weights, probe_ids, tolerance

from .models import vllm_engine

pytestmark = pytest.mark.vllm

SAMPLING = Sampling(1.0, 1.0, 8, ())
TOLERANCE = tolerance("float32")


@pytest.fixture
def engine(learner_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Any:
    made = vllm_engine(learner_model, tokenizer, SAMPLING)
    yield made
    made.sleep()


def test_after_a_push_the_weights_are_the_new_ones(
    engine: VllmEngine,
    learner_model: PreTrainedModel,
    other_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    probe = probe_ids(tokenizer)
    before, after = model_logprobs(learner_model, probe), model_logprobs(other_model, probe)
    assert check_weights(engine, 0, probe, before, TOLERANCE) < 1e-5
    old = engine.generate(requests(tokenizer), no_poll)
    engine.load_weights(other_model.state_dict().items(), 7)
    assert engine.policy_version == 7
    assert check_weights(engine, 7, probe, after, TOLERANCE) < 1e-5
    assert engine.generate(requests(tokenizer), no_poll) != old
    with pytest.raises(WeightSyncError, match="rounding does not explain"):
        check_weights(engine, 7, probe, before, TOLERANCE)
    with pytest.raises(WeightSyncError, match="version 7, the policy is at 8"):
        check_weights(engine, 8, probe, after, TOLERANCE)


def test_a_tampered_push_is_noticed(
    engine: VllmEngine, other_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """One matrix of one layer is the old one."""
    weights = dict(other_model.state_dict())
    name = "model.layers.1.self_attn.o_proj.weight"
    weights[name] = torch.zeros_like(weights[name])
    engine.load_weights(weights.items(), 1)
    probe = probe_ids(tokenizer)
    with pytest.raises(WeightSyncError):
        check_weights(engine, 1, probe, model_logprobs(other_model, probe), TOLERANCE)


def test_another_version_than_acknowledged_is_an_error(
    engine: VllmEngine, tokenizer: PreTrainedTokenizerBase
) -> None:
    engine.policy_version = 3
    with pytest.raises(WeightSyncError, match="version 0, not of version 3"):
        engine.generate(requests(tokenizer), no_poll)


def test_without_weights_it_refuses(
    learner_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    options = VllmOptions("float32", 256, 64, 0.1, in_place=False)
    engine = VllmEngine(learner_model.config, tokenizer, SAMPLING, options)
    assert engine.policy_version == -1
    with pytest.raises(YaokiError, match="no weights yet"):
        engine.generate(requests(tokenizer), no_poll)
    with pytest.raises(YaokiError, match="no weights yet"):
        engine.logprobs((1, 2, 3))


def test_asleep_it_has_no_weights(
    engine: VllmEngine, learner_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    tokens = [c.token_ids for c in engine.generate(requests(tokenizer), no_poll)]
    engine.sleep()
    engine.sleep()
    assert engine.policy_version == -1
    with pytest.raises(YaokiError, match="no weights yet"):
        engine.generate(requests(tokenizer), no_poll)
    with pytest.raises(YaokiError, match="call wake first"):
        engine.load_weights(learner_model.state_dict().items(), 1)
    engine.wake()
    with pytest.raises(YaokiError, match="no weights yet"):
        engine.generate(requests(tokenizer), no_poll)
    engine.load_weights(learner_model.state_dict().items(), 1)
    assert [c.token_ids for c in engine.generate(requests(tokenizer), no_poll)] == tokens


def test_weights_that_do_not_fit(engine: VllmEngine, learner_model: PreTrainedModel) -> None:
    weights = dict(learner_model.state_dict())
    weights.pop("model.norm.weight")
    with pytest.raises(YaokiError, match=r"differ in model\.norm\.weight"):
        engine.load_weights(weights.items(), 8)
    assert engine.policy_version == -1


def without_packing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let vLLM's CPU layers multiply with their weights as they are, as its GPU layers do."""
    import vllm.model_executor.layers.utils as layers

    def plain(layer: torch.nn.Module, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    monkeypatch.setattr(layers, "dispatch_cpu_unquantized_gemm", plain)


def test_an_update_in_place(
    learner_model: PreTrainedModel,
    other_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is done on a GPU, as far as a CPU can do it: push, sleep, wake, push."""
    without_packing(monkeypatch)
    engine, probe = vllm_engine(learner_model, tokenizer, SAMPLING, in_place=True), probe_ids(tokenizer)
    llm, woken = engine._model.llm, []
    wake_up = llm.wake_up
    monkeypatch.setattr(llm, "wake_up", lambda tags: woken.append(tags) or wake_up(tags))
    (request, *_) = requests(tokenizer, ["1+" * 100])  # long enough to be cached
    engine.generate([request], no_poll)
    for version, model in enumerate((other_model, learner_model, other_model), start=1):
        engine.load_weights(model.state_dict().items(), version)
        assert woken == ([["weights"]] if version == 3 else [])  # the learner may still be on the device
        assert check_weights(engine, version, probe, model_logprobs(model, probe), TOLERANCE) < 1e-5
        (completion,) = engine.generate([request], no_poll)
        expected = model_logprobs(model, [*request.prompt_ids, *completion.token_ids])
        assert completion.logprobs == pytest.approx(expected[len(request.prompt_ids) - 1 :], abs=1e-5)
        if version == 2:
            engine.sleep()
            engine.wake()
    assert engine._model.llm is llm
    assert woken == [["weights"], ["kv_cache"]]


def test_an_update_in_place_that_goes_wrong_is_noticed(
    learner_model: PreTrainedModel, other_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """With vLLM's packing for CPUs the update is answered with success, and neither weights are held."""
    engine, probe = vllm_engine(learner_model, tokenizer, SAMPLING, in_place=True), probe_ids(tokenizer)
    engine.load_weights(other_model.state_dict().items(), 1)
    for model in (learner_model, other_model):
        with pytest.raises(WeightSyncError):
            check_weights(engine, 1, probe, model_logprobs(model, probe), TOLERANCE)


def test_bfloat16(learner_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    engine = vllm_engine(learner_model, tokenizer, SAMPLING, precision="bfloat16")
    probe = probe_ids(tokenizer)
    gap = check_weights(engine, 0, probe, model_logprobs(learner_model, probe), tolerance("bfloat16"))
    assert gap > TOLERANCE.largest
    engine.sleep()


def test_the_process_stays_as_it_was(
    learner_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Generators, switches, signals, and the bits of a gradient."""

    def state() -> list[Any]:
        return [
            random.getstate(),
            [part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state()],
            torch.get_rng_state().tolist(),
            torch.set_num_threads,
            torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(),
            torch.get_float32_matmul_precision(),
            torch.get_default_dtype(),
            [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)],
            gradient(),
        ]

    def gradient() -> list[float]:
        model = tiny_random(5)
        model(input_ids=torch.arange(64)[None]).logits.logsumexp(-1).sum().backward()
        weight = model.get_parameter("model.layers.0.mlp.up_proj.weight")
        assert weight.grad is not None
        return list(weight.grad.flatten().tolist())

    before = state()
    engine = vllm_engine(learner_model, tokenizer, SAMPLING)
    assert state() == before
    engine.generate(requests(tokenizer), no_poll)
    engine.logprobs((1, 2, 3))
    engine.load_weights(learner_model.state_dict().items(), 1)
    engine.sleep()
    assert state() == before


def test_what_vllm_cannot_do_is_said_at_once(tokenizer: PreTrainedTokenizerBase) -> None:
    config = tiny_random(0).config
    options = VllmOptions("float32", 256, 64, 0.1, in_place=False)
    with pytest.raises(UsageError, match="heads are 16 wide"):
        VllmEngine(config, tokenizer, SAMPLING, options)
    long = VllmOptions("float32", 5000, 64, 0.1, in_place=False)
    with pytest.raises(UsageError, match="5000 tokens, the model at most 4096"):
        VllmEngine(config, tokenizer, SAMPLING, long)
    shared = VllmOptions("float32", 256, 64, 0.1, in_place=False, tensor_parallel=3)
    with pytest.raises(UsageError, match="3 workers cannot share the model's 8 attention heads"):
        VllmEngine(config, tokenizer, SAMPLING, shared)
