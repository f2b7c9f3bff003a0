"""From a step to its row: the numbers of its rollouts, its experience, its update and its time."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import torch
import xxhash

from yaoki.journal.step_row import StepRow, StepTiming
from yaoki.learner.learner import UpdateStats
from yaoki.rewards.answers import has_format
from yaoki.rl.batch import Experience
from yaoki.rl.losses import explained_variance
from yaoki.types import Rollout, VerdictReason

REFLECTION_WORDS = ("wait", "recheck", "retry", "alternatively", "however")
"""Words whose growing use Open-Reasoner-Zero takes as a sign of reflection (its section on analysis)."""

_REFLECTION = re.compile(rf"\b(?:{'|'.join(REFLECTION_WORDS)})\b", re.IGNORECASE)
_NGRAM_TOKENS = 4


def repetition_score(token_ids: Sequence[int]) -> float:
    """Share of 4-grams of tokens that occurred before: 1 - different / all, in [0, 1).

    This is the complement of the distinct-n measure (Li et al. 2016). A completion of fewer than four
    tokens scores 0; one that says the same thing for ever comes close to 1.
    """
    num_ngrams = len(token_ids) - _NGRAM_TOKENS + 1
    if num_ngrams < 1:
        return 0.0
    shifted = (token_ids[start : start + num_ngrams] for start in range(_NGRAM_TOKENS))
    return 1.0 - len(set(zip(*shifted, strict=True))) / num_ngrams


def count_reflection_words(text: str) -> int:
    """How often the reflection words occur, as whole words, in any case."""
    return sum(1 for _ in _REFLECTION.finditer(text))


class Stopwatch:
    """Wall seconds of named phases, and since it was made."""

    def __init__(self) -> None:
        self._start_s = perf_counter()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start_s = perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + perf_counter() - start_s

    @property
    def total_s(self) -> float:
        return perf_counter() - self._start_s


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step came to."""

    step: int
    rollouts: Sequence[Rollout]
    experience: Experience
    stats: UpdateStats
    kl_coef: float
    """Weight of the KL term in this step."""
    kl_to_ref: float | None
    held_out: float | None
    """Accuracy before the update, if it was due."""
    fingerprint: dict[str, str]
    """Of the state after the step."""


def step_row(done: StepResult, timing: StepTiming, attempt: int, epoch: int, history: str) -> StepRow:
    """The row of a step; see StepRow for the numbers."""
    return StepRow(
        step=done.step,
        attempt=attempt,
        **_rollout_metrics(done.rollouts),
        **_experience_metrics(done.experience),
        **_update_metrics(done.stats),
        policy_version=done.rollouts[0].policy_version,
        kl_coef=done.kl_coef,
        epoch=epoch,
        accuracy=done.held_out,
        kl_to_ref=done.kl_to_ref,
        history=history,
        fingerprint={"rollouts": rollout_digest(done.rollouts), **done.fingerprint},
        timing=timing,
    )


def step_timing(
    watch: Stopwatch,
    step_s: float,
    rollouts: Sequence[Rollout],
    *,
    num_reused: int,
    stall_s: float,
    train_s: float,
) -> StepTiming:
    """The time of a step that took `step_s`; `train_s` is that of the run."""
    num_tokens = sum(len(rollout.completion.token_ids) for rollout in rollouts)
    num_sampled = sum(rollout.completion.num_sampled for rollout in rollouts)
    new_share = 1 - num_reused / len(rollouts)
    phases = {f"{phase}_s": round(seconds, 4) for phase, seconds in watch.seconds.items()}
    return StepTiming(
        **phases,
        step_s=round(step_s, 4),
        checkpoint_s=round(stall_s, 4),
        train_s=round(train_s, 3),
        num_reused_rollouts=num_reused,
        rollout_tokens_per_s=round(new_share * num_sampled / watch.seconds["generate"], 1),
        tokens_per_s=round(num_tokens / step_s, 1),
    )


def rollout_digest(rollouts: Sequence[Rollout]) -> str:
    """xxh3-128 over everything that was sampled and judged: tokens, log-probabilities, rewards."""
    digest = xxhash.xxh3_128()
    for r in rollouts:
        coordinates = (r.key.step - 1, r.key.prompt, r.key.sample, r.policy_version, r.verdict.reward)
        digest.update(" ".join(map(str, coordinates)).encode())
        ids = [*r.prompt.token_ids, -1, *r.completion.token_ids, *r.completion.not_sampled]
        digest.update(torch.tensor(ids, dtype=torch.int64).numpy().data)
        digest.update(torch.tensor(r.completion.logprobs, dtype=torch.float64).numpy().data)
    return digest.hexdigest()


def _rollout_metrics(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    solved: dict[int, bool] = {}
    for r in rollouts:
        solved[r.key.prompt] = solved.get(r.key.prompt, False) or r.verdict.is_correct
    reasons = [r.verdict.reason for r in rollouts]
    return {
        "reward": _mean([r.verdict.reward for r in rollouts]),
        "pass_at_n": _mean(list(map(float, solved.values()))),
        "length": _mean([len(r.completion.token_ids) for r in rollouts]),
        "length_correct": _mean([len(r.completion.token_ids) for r in rollouts if r.verdict.is_correct]),
        "length_incorrect": _mean(
            [len(r.completion.token_ids) for r in rollouts if not r.verdict.is_correct]
        ),
        "truncated": _mean([float(not r.completion.stopped_by_itself) for r in rollouts]),
        "has_format": _mean([float(has_format(r.completion.text)) for r in rollouts]),
        "repetition": _mean([repetition_score(r.completion.token_ids) for r in rollouts]),
        "reflection_words": _mean([count_reflection_words(r.completion.text) for r in rollouts]),
        "verifier_timeouts": reasons.count(VerdictReason.TIMEOUT),
        "verifier_errors": reasons.count(VerdictReason.ERROR),
    }


def _experience_metrics(experience: Experience) -> dict[str, Any]:
    mask = experience.loss_mask
    assert experience.old_logprobs is not None
    gap = (experience.old_logprobs - experience.rollout_logprobs)[mask].abs()
    row = {"logprob_gap_mean": float(gap.mean()), "logprob_gap_max": float(gap.max())}
    if experience.values is not None and experience.returns is not None:
        row["value"] = float(experience.values[mask].double().mean())
        row["explained_variance"] = explained_variance(experience.values, experience.returns, mask)
    return row


def _update_metrics(stats: UpdateStats) -> dict[str, Any]:
    policy = {} if stats.policy is None else asdict(stats.policy)
    critic = {} if stats.critic is None else asdict(stats.critic)
    row: dict[str, Any] = {f"policy_{name}": value for name, value in policy.items()}
    row |= {f"critic_{name}": value for name, value in critic.items()}
    return row | {"skipped_steps": stats.num_skipped}


def _mean(values: Sequence[float]) -> float | None:
    """None for an empty sequence."""
    return sum(values) / len(values) if values else None
