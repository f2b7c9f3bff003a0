"""The numbers of a step that people watch, from its rollouts and its experience. Pure; feeds nothing back."""

import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

import torch
import xxhash

from yaoki.journal.metrics import Row
from yaoki.rewards.answers import has_format
from yaoki.rl.batch import Experience
from yaoki.rl.losses import explained_variance
from yaoki.types import Rollout, VerdictReason


class Stopwatch:
    """Seconds per named phase of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + perf_counter() - start


def rollout_metrics(rollouts: Sequence[Rollout]) -> Row:
    """Rewards, lengths and style of one batch. Lengths in tokens; shares and scores in [0, 1]."""
    groups: dict[int, list[float]] = {}
    for rollout in rollouts:
        groups.setdefault(rollout.prompt_index, []).append(rollout.verdict.reward)
    correct = [r for r in rollouts if r.verdict.reward > 0]
    incorrect = [r for r in rollouts if r.verdict.reward <= 0]
    reasons = [rollout.verdict.reason for rollout in rollouts]
    return {
        "reward": _mean([r.verdict.reward for r in rollouts]),
        "pass_at_n": _mean([float(max(rewards) > 0) for rewards in groups.values()]),
        "length": _mean([len(r.completion.token_ids) for r in rollouts]),
        "length_correct": _mean([len(r.completion.token_ids) for r in correct]),
        "length_incorrect": _mean([len(r.completion.token_ids) for r in incorrect]),
        "truncated": _mean([float(not r.completion.stopped_by_itself) for r in rollouts]),
        "has_format": _mean([float(has_format(r.completion.text)) for r in rollouts]),
        "repetition": _mean([repetition_score(r.completion.token_ids) for r in rollouts]),
        "reflection_words": _mean([count_reflection_words(r.completion.text) for r in rollouts]),
        "verifier_timeouts": reasons.count(VerdictReason.TIMEOUT),
        "verifier_errors": reasons.count(VerdictReason.ERROR),
    }


def experience_metrics(experience: Experience) -> Row:
    """How far engine and learner are apart, and how good the critic was before the update."""
    mask = experience.loss_mask
    assert experience.old_logprobs is not None
    gap = (experience.old_logprobs - experience.rollout_logprobs)[mask].abs()
    row: Row = {"logprob_gap_mean": float(gap.mean()), "logprob_gap_max": float(gap.max())}
    if experience.values is not None and experience.returns is not None:
        row["value"] = float(experience.values[mask].double().mean())
        row["explained_variance"] = explained_variance(experience.values, experience.returns, mask)
    return row


def rollout_digest(rollouts: Sequence[Rollout]) -> str:
    """xxh3-128 over everything that was sampled and judged: tokens, log-probabilities, rewards."""
    digest = xxhash.xxh3_128()
    for r in rollouts:
        digest.update(f"{r.step} {r.prompt_index} {r.sample} {r.policy_version} {r.verdict.reward}".encode())
        ids = [*r.prompt.token_ids, -1, *r.completion.token_ids]
        digest.update(torch.tensor(ids, dtype=torch.int64).numpy().data)
        digest.update(torch.tensor(r.completion.logprobs, dtype=torch.float64).numpy().data)
    return digest.hexdigest()


def _mean(values: Sequence[float]) -> float | None:
    """None where there is nothing to average."""
    return sum(values) / len(values) if values else None


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


PHASES = ("imports", "choose", "build", "load", "engine", "replay", "first_rollout")
"""In this order: the interpreter and its imports; lock and choice of the checkpoint; models, tokenizer, data
and verifier; reading the checkpoint; the engine's weights; steps and rollouts out of the journal; the first
micro-batch that is new."""


class Startup:
    """A stopwatch that is told when each phase has ended."""

    def __init__(self) -> None:
        self._last_s = _process_start_s()
        self.seconds: dict[str, float] = {}

    def ended(self, phase: str) -> None:
        """A phase, or another piece of it, has ended now; the next one begins."""
        now_s = time.time()
        self.seconds[phase] = round(self.seconds.get(phase, 0.0) + now_s - self._last_s, 3)
        self._last_s = now_s

    @property
    def is_over(self) -> bool:
        return PHASES[-1] in self.seconds


def _process_start_s() -> float:
    """Unix time at which this process was made; now where the system does not say."""
    try:
        fields = Path("/proc/self/stat").read_text("utf-8").rpartition(")")[2].split()
        uptime_s = float(Path("/proc/uptime").read_text("utf-8").split()[0])
        return time.time() - uptime_s + int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return time.time()
