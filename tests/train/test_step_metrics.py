"""The numbers of a step, from rollouts small enough to count by hand."""

from dataclasses import asdict, replace
from typing import Any

import pytest
import torch

from tests.support.metrics import TIMING
from tests.support.rollouts import rollout
from yaoki.journal.step_row import StepTiming
from yaoki.learner.learner import CriticStats, PolicyStats, UpdateStats
from yaoki.rl.batch import Experience, pad_rollouts
from yaoki.train.step_metrics import StepResult, Stopwatch, rollout_digest, step_row, step_timing
from yaoki.types import FinishReason, Rollout, VerdictReason

FORMATTED = "</think> <answer> \\boxed{2} </answer>"


def by_hand() -> list[Rollout]:
    return [
        rollout(0, 0, reward=1.0, token_ids=(1, 2, 3, 4), text=FORMATTED),
        rollout(0, 1, token_ids=(1,) * 6, text="wait, Wait: however", finish=FinishReason.LENGTH),
        rollout(1, 0, token_ids=(1, 2), text="waiting", reason=VerdictReason.TIMEOUT),
        rollout(1, 1, token_ids=(7,), text="", finish=FinishReason.EOS, reason=VerdictReason.ERROR),
    ]


def row_of(
    rollouts: list[Rollout],
    experience: Experience | None = None,
    stats: UpdateStats = UpdateStats(policy=None, critic=None, num_skipped=0),  # noqa: B008 - frozen
) -> dict[str, Any]:
    """The row of a step as metrics.jsonl has it."""
    if experience is None:
        experience = pad_rollouts([[1]], [[2]], [[-1.0]], [0.0], [0])
        experience = replace(experience, old_logprobs=experience.rollout_logprobs)
    done = StepResult(
        step=7,
        rollouts=rollouts,
        experience=experience,
        stats=stats,
        kl_coef=0.25,
        kl_to_ref=0.125,
        held_out=0.5,
        fingerprint={"policy.params": "f"},
    )
    timing = StepTiming(**TIMING, num_reused_rollouts=0)
    return step_row(done, timing, attempt=2, epoch=3, history="h").to_json()


ROLLOUTS_BY_HAND = {
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


def test_by_hand() -> None:
    timing = {**TIMING, "num_reused_rollouts": 0}
    assert row_of(by_hand()) == ROLLOUTS_BY_HAND | {
        "step": 7,
        "attempt": 2,
        "logprob_gap_mean": 0.0,
        "logprob_gap_max": 0.0,
        "policy_version": 0,
        "skipped_steps": 0,
        "kl_coef": 0.25,
        "kl_to_ref": 0.125,
        "epoch": 3,
        "accuracy": 0.5,
        "history": "h",
        "fingerprint": {"rollouts": rollout_digest(by_hand()), "policy.params": "f"},
        "timing": timing,
    }


def test_what_is_correct_is_the_verdict_and_not_the_reward() -> None:
    rollouts = [
        rollout(0, 0, reward=-0.3, token_ids=(1, 2), reason=VerdictReason.CORRECT),
        rollout(0, 1, reward=0.9, token_ids=(1, 2, 3, 4), reason=VerdictReason.WRONG),
        rollout(1, 0, reward=1.5, token_ids=(1, 2, 3), reason=VerdictReason.WRONG),
        rollout(2, 0, reward=0.5, token_ids=(1,), reason=VerdictReason.WRONG),
    ]
    row = row_of(rollouts)
    assert row["reward"] == pytest.approx(0.65)
    assert row["pass_at_n"] == pytest.approx(1 / 3)
    assert (row["length_correct"], row["length_incorrect"]) == (2, pytest.approx(8 / 3))


def test_there_may_be_nothing_to_average() -> None:
    none_right = row_of([rollout()])
    assert none_right["length_correct"] is None
    assert none_right["length_incorrect"] == 2
    assert row_of([rollout(reward=1.0)])["length_incorrect"] is None


def test_how_far_engine_and_learner_are_apart() -> None:
    """Only on tokens that were sampled."""
    columns = ([[1], [1]], [[2, 3], [4]], [[-1.0, -2.0], [-3.0]], [1.0, 0.0], [0, 1])
    old = torch.tensor([[0.0, -1.25, -2.0], [9.0, -2.5, 9.0]])
    row = row_of(by_hand(), replace(pad_rollouts(*columns), old_logprobs=old))
    assert (row["logprob_gap_mean"], row["logprob_gap_max"]) == (pytest.approx(0.25), 0.5)
    row = row_of(by_hand(), replace(pad_rollouts(*columns, [[0], []]), old_logprobs=old))
    assert (row["logprob_gap_mean"], row["logprob_gap_max"]) == (pytest.approx(0.25), 0.5)
    row = row_of(by_hand(), replace(pad_rollouts(*columns, [[], [0]]), old_logprobs=old))
    assert (row["logprob_gap_mean"], row["logprob_gap_max"]) == (pytest.approx(0.125), 0.25)


def test_how_good_the_critic_was() -> None:
    experience = pad_rollouts([[1], [1]], [[2], [4]], [[-1.0], [-3.0]], [1.0, 0.0], [0, 1])
    returns = torch.tensor([[9.0, 1.0], [9.0, 0.0]])
    perfect = replace(experience, old_logprobs=experience.rollout_logprobs, values=returns, returns=returns)
    assert row_of(by_hand(), perfect)["explained_variance"] == 1.0
    assert row_of(by_hand(), perfect)["value"] == 0.5
    useless = replace(perfect, values=torch.full((2, 2), 0.5))
    assert row_of(by_hand(), useless)["explained_variance"] == 0.0


def test_what_the_update_did_has_the_networks_name() -> None:
    policy = PolicyStats(loss=0.1, entropy=0.2, clip_fraction=0.3, approx_kl=0.4, grad_norm=0.5, lr=0.6)
    critic = CriticStats(loss=0.7, grad_norm=0.8, lr=0.9)
    row = row_of(by_hand(), stats=UpdateStats(policy, critic, num_skipped=2))
    expected = {f"policy_{name}": value for name, value in asdict(policy).items()}
    expected |= {f"critic_{name}": value for name, value in asdict(critic).items()}
    assert expected | {"skipped_steps": 2} == {name: row[name] for name in [*expected, "skipped_steps"]}
    assert len(expected) == 9
    assert not expected.keys() & row_of(by_hand()).keys(), "absent, not null, for what was not trained"


def test_the_time_of_a_step() -> None:
    """13 tokens in 4 rollouts, one of which was in the journal; one token was not sampled."""
    first, *others = by_hand()
    rollouts = [replace(first, completion=replace(first.completion, not_sampled=(1,))), *others]
    watch = Stopwatch()
    phases = ("evaluate", "journal", "score", "update", "sync", "fingerprint")
    watch.seconds = {"generate": 0.5} | dict.fromkeys(phases, 0.25)
    found = step_timing(watch, 2.0, rollouts, num_reused=1, stall_s=0.125, train_s=9.0)
    assert found == StepTiming(
        **{f"{phase}_s": 0.25 for phase in phases},
        generate_s=0.5,
        step_s=2.0,
        checkpoint_s=0.125,
        train_s=9.0,
        num_reused_rollouts=1,
        rollout_tokens_per_s=round(0.75 * 12 / 0.5, 1),
        tokens_per_s=6.5,
    )


def test_the_digest_is_of_everything_sampled_and_judged() -> None:
    whole = by_hand()
    first = whole[0]
    completion = first.completion
    others = [
        whole[1:],
        whole[::-1],
        [replace(first, key=first.key._replace(step=2)), *whole[1:]],
        [replace(first, key=first.key._replace(prompt=2)), *whole[1:]],
        [replace(first, key=first.key._replace(sample=2)), *whole[1:]],
        [replace(first, policy_version=1), *whole[1:]],
        [replace(first, verdict=replace(first.verdict, reward=0.0)), *whole[1:]],
        [replace(first, prompt=replace(first.prompt, token_ids=(1, 2, 4))), *whole[1:]],
        [replace(first, completion=replace(completion, token_ids=(1, 2, 3, 5))), *whole[1:]],
        [replace(first, completion=replace(completion, logprobs=(-1.0, -1.0, -1.0, -1.0000001))), *whole[1:]],
        [replace(first, completion=replace(completion, not_sampled=(1,))), *whole[1:]],
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
