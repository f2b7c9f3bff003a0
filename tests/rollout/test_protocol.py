"""What every engine promises about finished completions, sleep and versions; tests/vllm_engine has vLLM's."""

from collections.abc import Callable

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from yaoki.errors import StopRequested, YaokiError
from yaoki.models.builtin import tiny_random
from yaoki.rollout.engine import Request, RolloutEngine, Sampling
from yaoki.rollout.engines.scripted import ScriptedEngine
from yaoki.rollout.engines.stopping import StopCondition
from yaoki.rollout.engines.transformers import TransformersEngine
from yaoki.rollout.engines.vllm import PartialCompletion
from yaoki.types import Completion, FinishReason

Make = Callable[[PreTrainedModel, PreTrainedTokenizerBase], RolloutEngine]


def say(request: Request) -> Completion:
    return Completion((request.seed,), (-1.0,), "x", FinishReason.STOP)


ENGINES: dict[str, Make] = {
    "transformers": lambda model, tokenizer: TransformersEngine(
        tiny_random(9), tokenizer, Sampling(1.0, 1.0, 12, tuple("aeiou0123"))
    ),
    "scripted": lambda model, tokenizer: ScriptedEngine(say),
    "scripted, batch-invariant": lambda model, tokenizer: ScriptedEngine(say, batch_invariant=True),
}
REQUESTS = [Request((65, 66), place) for place in range(9)]


@pytest.fixture(params=ENGINES)
def engine(
    request: pytest.FixtureRequest, learner_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> RolloutEngine:
    made = ENGINES[request.param](learner_model, tokenizer)
    assert made.policy_version == -1
    made.load_weights(learner_model.state_dict().items(), 3)
    return made


def test_each_completion_is_handed_on_once(engine: RolloutEngine) -> None:
    events: list[tuple[int, Completion, int]] = []
    polls: list[None] = []
    completions = engine.generate(
        REQUESTS, lambda: polls.append(None), lambda place, c: events.append((place, c, len(polls)))
    )
    assert len(completions) == 9
    assert sorted(place for place, _, _ in events) == list(range(9))
    assert all(completions[place] is completion for place, completion, _ in events)
    if engine.batch_invariant:
        assert events[0][2] < len(polls)
    else:
        assert [place for place, _, _ in events] == list(range(9))
        assert {polled for _, _, polled in events} == {len(polls)}


def test_a_receiver_is_not_needed(engine: RolloutEngine) -> None:
    assert engine.generate(REQUESTS, lambda: None) == engine.generate(
        REQUESTS, lambda: None, lambda place, completion: None
    )


@pytest.mark.parametrize("calls", [1, 4])
def test_a_stop_before_the_end_hands_on_what_is_worth_keeping(engine: RolloutEngine, calls: int) -> None:
    kept: list[int] = []
    polls: list[None] = []

    def poll() -> None:
        polls.append(None)
        if len(polls) == calls:
            raise StopRequested("enough")

    with pytest.raises(StopRequested):
        engine.generate(REQUESTS, poll, lambda place, completion: kept.append(place))
    assert len(kept) == (calls - 1 if engine.batch_invariant else 0)


def test_what_the_receiver_raises_comes_through(engine: RolloutEngine) -> None:
    def full(place: int, completion: Completion) -> None:
        raise YaokiError("no space")

    with pytest.raises(YaokiError, match="no space"):
        engine.generate(REQUESTS, lambda: None, full)
    assert len(engine.generate(REQUESTS, lambda: None)) == 9


def test_after_sleep_and_wake_weights_get_in(engine: RolloutEngine, learner_model: PreTrainedModel) -> None:
    expected = engine.generate(REQUESTS, lambda: None)
    engine.sleep()
    engine.wake()
    engine.load_weights(learner_model.state_dict().items(), 4)
    assert engine.policy_version == 4
    assert engine.generate(REQUESTS, lambda: None) == expected


def test_logprobs_are_of_all_tokens_but_the_first(engine: RolloutEngine) -> None:
    assert len(engine.logprobs((65, 66, 67, 68))) == 3


def test_without_weights_there_are_no_logprobs(
    learner_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    engine = ENGINES["transformers"](learner_model, tokenizer)
    with pytest.raises(YaokiError, match="no weights yet"):
        engine.logprobs((65, 66))


def test_tokens_after_the_end_are_left_out(tokenizer: PreTrainedTokenizerBase) -> None:
    """A library may hand on several tokens at a time."""
    row, stop = PartialCompletion(5), StopCondition(tokenizer, ["</answer>"])
    text = tokenizer("ab</answer>cd")["input_ids"]
    row.extend([(token, -0.5) for token in text[:2]], stop)
    assert row.reason is None
    row.extend([(token, -0.25) for token in text[2:]], stop)
    completion = row.completion(tokenizer)
    assert completion == Completion(tuple(text[:3]), (-0.5, -0.5, -0.25), "ab</answer>", FinishReason.STOP)
    cut = PartialCompletion(0)
    cut.extend([(token, -0.5) for token in text[:2]], stop)
    assert cut.completion(tokenizer).finish_reason is FinishReason.LENGTH
    ended = PartialCompletion(0)
    ended.extend([(tokenizer.eos_token_id, -0.5), (text[0], -0.5)], stop)
    assert ended.completion(tokenizer) == Completion((tokenizer.eos_token_id,), (-0.5,), "", FinishReason.EOS)


@pytest.mark.parametrize("logprob", [float("nan"), float("-inf")])
def test_a_token_from_nowhere_is_an_error(tokenizer: PreTrainedTokenizerBase, logprob: float) -> None:
    row = PartialCompletion(0)
    row.extend([(65, -1.0), (66, logprob)], StopCondition(tokenizer, []))
    with pytest.raises(YaokiError, match="not finite"):
        row.completion(tokenizer)
