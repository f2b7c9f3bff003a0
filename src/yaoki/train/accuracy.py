"""Held-out accuracy, with its confidence interval and pass@k."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from yaoki.types import Rollout

_Z95 = 1.959964
"""Standard normal quantile of a two-sided 95 % interval."""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Pass@1 over tasks, each averaged over its samples, with a 95 % interval."""

    num_tasks: int
    num_samples: int
    pass_at_1: float
    low: float
    high: float
    pass_at_k: dict[int, float]
    """k -> share of tasks solved by at least one of k samples, for powers of 2 up to num_samples."""


@dataclass(frozen=True, slots=True)
class Evaluation(Accuracy):
    """The result of `yaoki eval`."""

    step: int | None
    """Step of the checkpoint; None for a model folder."""
    completions: Path
    """Parquet file with the completions."""


def accuracy(rollouts: Sequence[Rollout]) -> Accuracy:
    """Accuracy of rollouts ordered by (prompt, sample), the same number of samples each."""
    correct_by_task = Counter({rollout.key.prompt: 0 for rollout in rollouts})
    correct_by_task.update(rollout.key.prompt for rollout in rollouts if rollout.verdict.is_correct)
    correct = list(correct_by_task.values())
    num_samples = len(rollouts) // len(correct)
    means = [num_correct / num_samples for num_correct in correct]
    low, high = interval(means)
    ks = [2**i for i in range(num_samples.bit_length()) if 2**i <= num_samples]
    return Accuracy(
        num_tasks=len(means),
        num_samples=num_samples,
        pass_at_1=sum(means) / len(means),
        low=low,
        high=high,
        pass_at_k={k: sum(pass_at_k(num_samples, c, k) for c in correct) / len(correct) for k in ks},
    )


def interval(task_means: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean over tasks: Wilson's, with as many trials as the spread over tasks is worth.

    Samples of one task are not independent, so the trials are tasks: at least as many as there are, more
    when sampling each task often makes their means agree. Stays inside [0, 1] and keeps a width at 0 and 1.
    """
    n = len(task_means)
    mean = sum(task_means) / n
    variance = sum((m - mean) ** 2 for m in task_means) / (n - 1) if n > 1 else 0.0
    trials = max(n, n * mean * (1 - mean) / variance) if variance > 0 else n
    centre = (mean + _Z95**2 / (2 * trials)) / (1 + _Z95**2 / trials)
    half = _Z95 / (1 + _Z95**2 / trials) * math.sqrt(mean * (1 - mean) / trials + _Z95**2 / (4 * trials**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Unbiased chance that one of k samples is right (Chen et al. 2021, "Evaluating LLMs on Code")."""
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)
