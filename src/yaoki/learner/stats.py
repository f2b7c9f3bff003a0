"""What an update says of itself. Knows nothing of how it was done."""

from dataclasses import dataclass, fields
from typing import TypeVar


@dataclass(frozen=True, slots=True)
class PolicyStats:
    """What the policy's optimizer steps did, averaged over them."""

    loss: float
    entropy: float
    """Mean over response tokens, in nats."""
    clip_fraction: float
    """Share of tokens on which the clip stopped the gradient."""
    approx_kl: float
    """Mean over tokens of KL(old policy || policy) at the time of each step (k3), in nats."""
    grad_norm: float
    """Before clipping."""
    lr: float


@dataclass(frozen=True, slots=True)
class CriticStats:
    """What the critic's optimizer steps did, averaged over them."""

    loss: float
    grad_norm: float
    lr: float


@dataclass(frozen=True, slots=True)
class UpdateStats:
    """One update; None for a network that was not trained."""

    policy: PolicyStats | None
    critic: CriticStats | None
    num_skipped: int
    """Optimizer steps left out because a loss or a gradient was not finite."""


_Stats = TypeVar("_Stats", PolicyStats, CriticStats)


def mean(all_steps: list[_Stats | None]) -> _Stats | None:
    """Over the steps that were not left out; None if there are none."""
    steps = [step for step in all_steps if step is not None]
    if not steps:
        return None
    names = [field.name for field in fields(steps[0])]
    means = {name: sum(getattr(step, name) for step in steps) / len(steps) for name in names}
    return type(steps[0])(**means)
