"""Completions of vLLM: the learner's log-probabilities, seeds, ends, and one after another."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tests.support.requests import PROMPTS, no_poll, requests
from yaoki.errors import StopRequested, YaokiError
from yaoki.models.policy import token_logprobs
from yaoki.rollout.engine import Request, Sampling
from yaoki.rollout.engines.stopping import StopCondition
from yaoki.rollout.engines.vllm import VllmEngine
from yaoki.types import Completion, FinishReason

from .models import STOP_OFTEN, transformers_engine, vllm_engine

pytestmark = pytest.mark.vllm

SAMPLING = Sampling(1.0, 1.0, 40, STOP_OFTEN)


@pytest.fixture(scope="module")
def engine(learner_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Iterator[VllmEngine]:
    made = vllm_engine(learner_model, tokenizer, SAMPLING)
    yield made
    made.sleep()


@torch.no_grad()
def learner_logprobs(
    model: PreTrainedModel, request: Request, token_ids: tuple[int, ...], temperature: float
) -> list[float]:
    ids = torch.tensor([[*request.prompt_ids, *token_ids]])
    found, _ = token_logprobs(model, ids, len(request.prompt_ids), temperature)
    return list(found[0].tolist())


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.0, 0.8)])
def test_logprobs_agree_with_the_learners(
    learner_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, temperature: float, top_p: float
) -> None:
    """After the temperature and before top-p, as those of the transformers engine."""
    engine = vllm_engine(learner_model, tokenizer, Sampling(temperature, top_p, 40, STOP_OFTEN))
    asked = requests(tokenizer)
    for request, completion in zip(asked, engine.generate(asked, no_poll), strict=True):
        expected = learner_logprobs(learner_model, request, completion.token_ids, temperature)
        assert completion.logprobs == pytest.approx(expected, abs=1e-5)
    engine.sleep()


def test_against_the_transformers_engine(
    engine: VllmEngine, learner_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Other tokens, as the random numbers are vLLM's own; the same rules for everything else."""
    asked = requests(tokenizer, samples=16)
    own, others = (
        made.generate(asked, no_poll)
        for made in (engine, transformers_engine(learner_model, tokenizer, SAMPLING))
    )
    stop = StopCondition(tokenizer, STOP_OFTEN)
    for completions in (own, others):
        for completion in completions:
            ends = [stop.check(completion.token_ids[:end]) for end in range(1, len(completion.token_ids) + 1)]
            assert set(ends[:-1]) <= {None}
            assert (ends[-1] or FinishReason.LENGTH) == completion.finish_reason
            assert len(completion.token_ids) == len(completion.logprobs) <= SAMPLING.max_new_tokens
            assert completion.text == tokenizer.decode(completion.token_ids, skip_special_tokens=True)
            if completion.finish_reason is FinishReason.STOP:
                assert any(text in completion.text for text in STOP_OFTEN)
            if completion.finish_reason is FinishReason.LENGTH:
                assert len(completion.token_ids) == SAMPLING.max_new_tokens
    assert {c.finish_reason for c in own} >= {FinishReason.STOP, FinishReason.LENGTH}
    # The same distribution: mean log-probability of a first token is the negative of its entropy.
    firsts = [[c.logprobs[0] for c in completions] for completions in (own, others)]
    assert sum(firsts[0]) / 64 == pytest.approx(sum(firsts[1]) / 64, abs=0.5)


def test_seeds_decide_whatever_else_is_generated(
    engine: VllmEngine, learner_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    asked = requests(tokenizer, samples=8)
    tokens = [c.token_ids for c in engine.generate(asked, no_poll)]
    assert [c.token_ids for c in engine.generate(asked, no_poll)] == tokens
    assert [c.token_ids for c in engine.generate(asked[5:9], no_poll)] == tokens[5:9]
    assert [c.token_ids for c in engine.generate(asked[::-1], no_poll)] == tokens[::-1]
    engine.load_weights(learner_model.state_dict().items(), 1)
    assert [c.token_ids for c in engine.generate(asked, no_poll)] == tokens
    others = [replace(request, seed=request.seed ^ 1) for request in asked]
    assert [c.token_ids for c in engine.generate(others, no_poll)] != tokens
    large = [replace(request, seed=2**64 - 1 - place) for place, request in enumerate(asked)]
    assert len({c.token_ids for c in engine.generate(large, no_poll)}) > 8


def test_the_prompt_is_not_searched_and_the_end_of_sequence_ends(
    learner_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    engine = vllm_engine(learner_model, tokenizer, Sampling(1.0, 1.0, 200, ("</answer>", "=<")))
    completions = engine.generate(requests(tokenizer, ["</answer>1=</answer>1="], samples=48), no_poll)
    found = {c.finish_reason for c in completions}
    assert FinishReason.EOS in found
    for completion in completions:
        ends = [token == tokenizer.eos_token_id for token in completion.token_ids]
        assert not any(ends[:-1])
        assert ends[-1] == (completion.finish_reason is FinishReason.EOS)
    engine.sleep()


def test_completions_come_one_by_one(engine: VllmEngine, tokenizer: PreTrainedTokenizerBase) -> None:
    """A short one before the longest has ended."""
    events: list[tuple[int, Completion]] = []
    polls_before: list[int] = []
    num_polls = 0

    def poll() -> None:
        nonlocal num_polls
        num_polls += 1

    def on_finished(place: int, completion: Completion) -> None:
        events.append((place, completion))
        polls_before.append(num_polls)

    completions = engine.generate(requests(tokenizer, samples=8), poll, on_finished)
    assert sorted(place for place, _ in events) == list(range(32))
    assert all(completions[place] is completion for place, completion in events)
    lengths = [len(completion.token_ids) for _, completion in events]
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1]
    assert polls_before[0] < polls_before[-1] == num_polls
    assert num_polls == pytest.approx(lengths[-1], abs=4)


@pytest.mark.parametrize("calls", [1, 2, 9])
def test_a_stop_leaves_the_engine_as_it_was(
    engine: VllmEngine, tokenizer: PreTrainedTokenizerBase, calls: int
) -> None:
    asked = requests(tokenizer)
    expected = [c.token_ids for c in engine.generate(asked, no_poll)]
    kept: list[int] = []
    polled = 0

    def poll() -> None:
        nonlocal polled
        polled += 1
        if polled == calls:
            raise StopRequested("enough")

    with pytest.raises(StopRequested):
        engine.generate(asked, poll, lambda place, completion: kept.append(place))
    assert polled == calls
    assert len(kept) < len(asked)
    assert [c.token_ids for c in engine.generate(asked, no_poll)] == expected


def test_what_the_receiver_raises_comes_through(
    engine: VllmEngine, tokenizer: PreTrainedTokenizerBase
) -> None:
    def on_finished(place: int, completion: Completion) -> None:
        raise YaokiError("no space")

    with pytest.raises(YaokiError, match="no space"):
        engine.generate(requests(tokenizer), no_poll, on_finished)
    assert len(engine.generate(requests(tokenizer), no_poll)) == 4 * len(PROMPTS)


def test_no_requests_no_completions(engine: VllmEngine) -> None:
    assert engine.generate([], no_poll) == []
    assert engine.batch_invariant
