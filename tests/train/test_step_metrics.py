"""The numbers of a step, from rollouts small enough to count by hand."""

from dataclasses import replace

import pytest
import torch

from tests.support.rollouts import rollout
from yaoki.rl.batch import pad_rollouts
from yaoki.train.step_metrics import Stopwatch, experience_metrics, rollout_digest, rollout_metrics
from yaoki.types import FinishReason, Rollout, VerdictReason

FORMATTED = "</think> <answer> \\boxed{2} </answer>"


def by_hand() -> list[Rollout]:
    return [
        rollout(0, 0, reward=1.0, token_ids=(1, 2, 3, 4), text=FORMATTED),
        rollout(0, 1, token_ids=(1,) * 6, text="wait, Wait: however", finish=FinishReason.LENGTH),
        rollout(1, 0, token_ids=(1, 2), text="waiting", reason=VerdictReason.TIMEOUT),
        rollout(1, 1, token_ids=(7,), text="", finish=FinishReason.EOS, reason=VerdictReason.ERROR),
    ]


def test_by_hand() -> None:
    assert rollout_metrics(by_hand()) == {
        "reward": 0.25,
        "pass_at_n": 0.5,
        "length": 13 / 4,
        "length_correct": 4.0,
        "length_incorrect": 3.0,
        "truncated": 0.25,
        "has_format": 0.25,
        # six equal tokens hold three 4-grams, of which two were there before
        "repetition": pytest.approx(2 / 3 / 4),
        "reflection_words": 0.75,
        "verifier_timeouts": 1,
        "verifier_errors": 1,
    }


def test_there_may_be_nothing_to_average() -> None:
    none_right = rollout_metrics([rollout()])
    assert none_right["length_correct"] is None
    assert none_right["length_incorrect"] == 2
    assert rollout_metrics([rollout(reward=1.0)])["length_incorrect"] is None


def test_how_far_engine_and_learner_are_apart() -> None:
    experience = pad_rollouts([[1], [1]], [[2, 3], [4]], [[-1.0, -2.0], [-3.0]], [1.0, 0.0], [0, 1])
    old = torch.tensor([[0.0, -1.25, -2.0], [9.0, -2.5, 9.0]])
    row = experience_metrics(replace(experience, old_logprobs=old))
    assert row == {"logprob_gap_mean": pytest.approx(0.25), "logprob_gap_max": 0.5}


def test_how_good_the_critic_was() -> None:
    experience = pad_rollouts([[1], [1]], [[2], [4]], [[-1.0], [-3.0]], [1.0, 0.0], [0, 1])
    returns = torch.tensor([[9.0, 1.0], [9.0, 0.0]])
    perfect = replace(experience, old_logprobs=experience.rollout_logprobs, values=returns, returns=returns)
    assert experience_metrics(perfect)["explained_variance"] == 1.0
    assert experience_metrics(perfect)["value"] == 0.5
    useless = replace(perfect, values=torch.full((2, 2), 0.5))
    assert experience_metrics(useless)["explained_variance"] == 0.0


def test_the_digest_is_of_everything_sampled_and_judged() -> None:
    whole = by_hand()
    first = whole[0]
    completion = first.completion
    others = [
        whole[1:],
        whole[::-1],
        [replace(first, step=1), *whole[1:]],
        [replace(first, policy_version=1), *whole[1:]],
        [replace(first, verdict=replace(first.verdict, reward=0.0)), *whole[1:]],
        [replace(first, prompt=replace(first.prompt, token_ids=(1, 2, 4))), *whole[1:]],
        [replace(first, completion=replace(completion, token_ids=(1, 2, 3, 5))), *whole[1:]],
        [replace(first, completion=replace(completion, logprobs=(-1.0, -1.0, -1.0, -1.0000001))), *whole[1:]],
        # a token that moves from the prompt to the completion
        [
            replace(
                first,
                prompt=replace(first.prompt, token_ids=(1, 2)),
                completion=replace(completion, token_ids=(3, 1, 2, 3, 4)),
            ),
            *whole[1:],
        ],
    ]
    digests = [rollout_digest(rollouts) for rollouts in (whole, *others)]
    assert rollout_digest(by_hand()) == digests[0]
    assert len(set(digests)) == len(digests)


def test_a_stopwatch_adds_up() -> None:
    watch = Stopwatch()
    with watch("a"):
        pass
    once = watch.seconds["a"]
    with pytest.raises(KeyError), watch("a"):
        raise KeyError
    with watch("b"):
        pass
    assert watch.seconds["a"] > once >= 0
    assert set(watch.seconds) == {"a", "b"}
