"""Generation: the same bits for the same requests, whatever leaves, stops or interrupts."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    MistralConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
)

from tests.support.requests import no_poll, requests
from yaoki.errors import StopRequested, YaokiError
from yaoki.models.builtin import tiny_random
from yaoki.models.policy import token_logprobs
from yaoki.rollout.engine import Request, Sampling
from yaoki.rollout.engines.sampling import sample_tokens
from yaoki.rollout.engines.stopping import StopCondition
from yaoki.rollout.engines.transformers import TransformersEngine
from yaoki.seeding import uniforms
from yaoki.types import Completion, FinishReason

STOP_OFTEN = tuple("aeiou0123")


@pytest.fixture
def engine(learner_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> TransformersEngine:
    return build(learner_model, tokenizer)


def build(
    learner_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int = 40,
    stop: tuple[str, ...] = STOP_OFTEN,
) -> TransformersEngine:
    """An engine of its own model, with the learner's weights in it."""
    made = TransformersEngine(tiny_random(99), tokenizer, Sampling(temperature, top_p, max_new_tokens, stop))
    made.load_weights(learner_model.state_dict().items(), 0)
    return made


@contextmanager
def forward_rows(engine: TransformersEngine) -> Iterator[list[int]]:
    """Rows of each forward pass of the engine's model."""
    rows: list[int] = []

    def record(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        rows.append(len(kwargs["input_ids"]))

    handle = engine._model.register_forward_pre_hook(record, with_kwargs=True)
    try:
        yield rows
    finally:
        handle.remove()


@torch.no_grad()
def one_by_one(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, request: Request, sampling: Sampling
) -> tuple[list[int], FinishReason]:
    """The same completion without batch, padding or cache."""
    stop = StopCondition(tokenizer, sampling.stop)
    ids: list[int] = []
    for position in range(sampling.max_new_tokens):
        logits = model(input_ids=torch.tensor([[*request.prompt_ids, *ids]])).logits[:, -1]
        number = torch.from_numpy(uniforms(np.array([request.seed], np.uint64), position))
        token, _ = sample_tokens(logits, number, sampling.temperature, sampling.top_p)
        ids.append(int(token))
        if (reason := stop.check(ids)) is not None:
            return ids, reason
    return ids, FinishReason.LENGTH


def test_the_same_requests_give_the_same_bits(
    engine: TransformersEngine, learner_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    before = torch.get_rng_state()
    first = engine.generate(requests(tokenizer), no_poll)
    torch.rand(3)
    assert engine.generate(requests(tokenizer), no_poll) == first
    assert build(learner_model, tokenizer).generate(requests(tokenizer), no_poll) == first
    assert engine.generate(requests(tokenizer, run_seed=1), no_poll) != first
    torch.set_rng_state(before)
    engine.generate(requests(tokenizer), no_poll)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 0.8)])
def test_against_one_completion_at_a_time(
    learner_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, temperature: float, top_p: float
) -> None:
    """Prompts of different lengths, rows that leave, the cache: none of it changes a token."""
    engine = build(learner_model, tokenizer, temperature=temperature, top_p=top_p, max_new_tokens=20)
    asked = requests(tokenizer, samples=2)
    completions = engine.generate(asked, no_poll)
    sampling = Sampling(temperature, top_p, 20, STOP_OFTEN)
    for request, completion in zip(asked, completions, strict=True):
        ids, reason = one_by_one(learner_model, tokenizer, request, sampling)
        assert (list(completion.token_ids), completion.finish_reason) == (ids, reason)
        assert completion.text == tokenizer.decode(ids, skip_special_tokens=True)
    assert {c.finish_reason for c in completions} >= {FinishReason.STOP, FinishReason.LENGTH}
    lengths = {len(completion.token_ids) for completion in completions}
    assert len(lengths) > 2


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_agree_with_the_learners(
    learner_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, temperature: float
) -> None:
    engine = build(learner_model, tokenizer, temperature=temperature, top_p=0.9)
    asked = requests(tokenizer)
    for request, completion in zip(asked, engine.generate(asked, no_poll), strict=True):
        ids = torch.tensor([[*request.prompt_ids, *completion.token_ids]])
        with torch.no_grad():
            expected, _ = token_logprobs(learner_model, ids, len(request.prompt_ids), temperature)
        found = torch.tensor([completion.logprobs])
        assert found.shape == expected.shape
        assert (found - expected).abs().max() <= 1e-4


ARCHITECTURES = {
    "absolute positions": GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=128),
    "sliding window": MistralConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                                    num_key_value_heads=1, intermediate_size=48, sliding_window=8),
    "some layers with a window": Qwen2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                                             num_key_value_heads=2, intermediate_size=48,
                                             use_sliding_window=True, sliding_window=8, max_window_layers=1),
}  # fmt: skip


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_other_architectures(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Padding on the left and rows that leave are safe for other kinds of positions and caches too."""
    shape = ARCHITECTURES[name]
    shape.vocab_size = len(tokenizer)
    shape.initializer_range = 0.2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(shape).eval()
        copy = AutoModelForCausalLM.from_config(shape)
    sampling = Sampling(1.0, 1.0, 20, STOP_OFTEN)
    engine = TransformersEngine(copy, tokenizer, sampling)
    engine.load_weights(model.state_dict().items(), 0)
    asked = requests(tokenizer, samples=2)
    for request, completion in zip(asked, engine.generate(asked, no_poll), strict=True):
        ids, reason = one_by_one(model, tokenizer, request, sampling)
        assert (list(completion.token_ids), completion.finish_reason) == (ids, reason)
        full = torch.tensor([[*request.prompt_ids, *ids]])
        with torch.no_grad():
            expected, _ = token_logprobs(model, full, len(request.prompt_ids), 1.0)
        assert completion.logprobs == pytest.approx(expected[0].tolist(), abs=1e-4)


def test_equal_lengths_or_not_makes_no_difference(
    engine: TransformersEngine, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Without padding there is no mask."""
    equal = requests(tokenizer, ["1+1=", "2+3="])
    longer = Request(tuple(tokenizer("9" * 30)["input_ids"]), 7)
    alone = engine.generate(equal, no_poll)
    together = engine.generate([*equal, longer], no_poll)[:-1]
    assert [c.token_ids for c in alone] == [c.token_ids for c in together]


def test_finished_rows_leave(engine: TransformersEngine, tokenizer: PreTrainedTokenizerBase) -> None:
    asked = requests(tokenizer, samples=8)
    with forward_rows(engine) as rows:
        completions = engine.generate(asked, no_poll)
    lengths = [len(completion.token_ids) for completion in completions]
    # A row that makes n tokens is needed in n passes; one in eight may be a passenger.
    for position, found in list(enumerate(rows))[1:]:
        needed = sum(length > position for length in lengths)
        assert needed <= found
        assert (found - needed) * 8 < found or found == len(asked)
    assert rows[1] > rows[-1]
    assert rows[1:] == sorted(rows[1:], reverse=True)
    assert len(rows) == max(lengths)


def test_the_token_limit(learner_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    engine = build(learner_model, tokenizer, max_new_tokens=7, stop=("no such text",))
    with forward_rows(engine) as rows:
        completions = engine.generate(requests(tokenizer), no_poll)
    assert {c.finish_reason for c in completions} == {FinishReason.LENGTH}
    assert {len(c.token_ids) for c in completions} == {len(c.logprobs) for c in completions} == {7}
    assert not any(c.stopped_by_itself for c in completions)
    assert rows == [4, *[16] * 6]


def test_a_prompt_is_read_once_for_its_group(
    engine: TransformersEngine, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Wherever in the micro-batch its members are."""
    grouped = requests(tokenizer)
    mixed = grouped[::3] + grouped[1::3] + grouped[2::3]
    with forward_rows(engine) as rows:
        found = {
            request: completion.token_ids
            for request, completion in zip(mixed, engine.generate(mixed, no_poll), strict=True)
        }
    assert rows[:2] == [4, 16]
    expected = engine.generate(grouped, no_poll)
    assert [found[request] for request in grouped] == [completion.token_ids for completion in expected]


def test_the_end_of_sequence(engine: TransformersEngine, tokenizer: PreTrainedTokenizerBase) -> None:
    def insist(module: Any, args: Any, output: Any) -> Any:
        output.logits[..., tokenizer.eos_token_id] = 1e4
        return output

    handle = engine._model.register_forward_hook(insist)
    completions = engine.generate(requests(tokenizer), no_poll)
    handle.remove()
    ended = Completion((tokenizer.eos_token_id,), (0.0,), "", FinishReason.EOS)
    assert completions == [ended] * 16


def test_the_prompt_is_not_searched_for_stop_strings(
    learner_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    engine = build(learner_model, tokenizer, stop=("</answer>", "=<"), max_new_tokens=5)
    (completion,) = engine.generate(requests(tokenizer, ["</answer>1=</answer>1="], samples=1), no_poll)
    assert len(completion.token_ids) == 5


def test_nearly_no_temperature_is_greedy(
    learner_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """The same tokens as transformers' own generate."""
    engine = build(learner_model, tokenizer, temperature=1e-6, max_new_tokens=12, stop=())
    for request, completion in zip(
        requests(tokenizer, samples=1),
        engine.generate(requests(tokenizer, samples=1), no_poll),
        strict=True,
    ):
        ids = torch.tensor([request.prompt_ids])
        expected = learner_model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, eos_token_id=None
        )
        assert completion.token_ids == tuple(expected[0, ids.shape[1] :].tolist())


def test_no_weights_no_words(tokenizer: PreTrainedTokenizerBase) -> None:
    engine = TransformersEngine(tiny_random(99), tokenizer, Sampling(1.0, 1.0, 4, ()))
    assert engine.policy_version == -1
    with pytest.raises(YaokiError, match="no weights yet") as caught:
        engine.generate(requests(tokenizer), no_poll)
    assert caught.value.hint


def test_weights_are_copied(learner_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    engine = build(learner_model, tokenizer)
    first = engine.generate(requests(tokenizer), no_poll)
    pushed = {name: tensor.clone() for name, tensor in tiny_random(5).state_dict().items()}
    engine.load_weights(pushed.items(), 3)
    assert engine.policy_version == 3
    other = engine.generate(requests(tokenizer), no_poll)
    assert other != first
    for tensor in pushed.values():
        tensor.zero_()
    assert engine.generate(requests(tokenizer), no_poll) == other
    engine.load_weights(learner_model.state_dict().items(), 4)
    assert engine.generate(requests(tokenizer), no_poll) == first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("model.norm.weight"), r"differ in model\.norm\.weight"),
        (lambda w: w.update(extra=torch.zeros(1)), "differ in extra"),
        (
            lambda w: w.update({"model.norm.weight": torch.zeros(7)}),
            r"model\.norm\.weight is \(128,\) in the engine, \(7,\) pushed",
        ),
    ],
)
def test_after_weights_that_do_not_fit_it_has_none(
    learner_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, change: Any, message: str
) -> None:
    engine = build(learner_model, tokenizer)
    weights = dict(tiny_random(5).state_dict())
    change(weights)
    with pytest.raises(YaokiError, match=message):
        engine.load_weights(weights.items(), 8)
    assert engine.policy_version == -1
    with pytest.raises(YaokiError, match="no weights yet"):
        engine.generate(requests(tokenizer), no_poll)


@pytest.mark.parametrize("calls", [1, 2, 9])
def test_a_stop_leaves_the_engine_as_it_was(
    engine: TransformersEngine, tokenizer: PreTrainedTokenizerBase, calls: int
) -> None:
    expected = engine.generate(requests(tokenizer), no_poll)
    polled = 0

    def poll() -> None:
        nonlocal polled
        polled += 1
        if polled == calls:
            raise StopRequested("enough")

    with pytest.raises(StopRequested):
        engine.generate(requests(tokenizer), poll)
    assert polled == calls
    assert engine.policy_version == 0
    assert engine.generate(requests(tokenizer), no_poll) == expected


def test_it_asks_between_tokens(engine: TransformersEngine, tokenizer: PreTrainedTokenizerBase) -> None:
    polls: list[None] = []
    completions = engine.generate(requests(tokenizer), lambda: polls.append(None))
    assert len(polls) == max(len(completion.token_ids) for completion in completions)
