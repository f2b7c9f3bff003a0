"""Which checkpoints may go: a pure function from a list to a list. No torch, no files.

It knows steps and verdicts; how a checkpoint was verified or is removed is not its business.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from yaoki.errors import UsageError


@dataclass(frozen=True, slots=True)
class Entry:
    """A checkpoint as retention sees it."""

    step: int
    verified: bool
    """Whether it was read in full and found whole, as the one to resume from at its step."""
    metric: float | None = None
    """Higher is better; None or NaN: unknown."""
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class Policy:
    """What to keep: a verified checkpoint stays if any of the three rules wants it."""

    keep_last: int
    """The newest so many, at least 1."""
    keep_every: int | None = None
    """Those whose step is a multiple of this."""
    keep_best: int = 0
    """The best so many by metric; of equal ones the newer."""

    def __post_init__(self) -> None:
        for name, value, least in (
            ("keep_last", self.keep_last, 1),
            ("keep_every", self.keep_every, 1),
            ("keep_best", self.keep_best, 0),
        ):
            if value is not None and value < least:
                raise UsageError(f"{name} is {value}", hint=f"set {name} to {least} or more")


def select_doomed(entries: Sequence[Entry], policy: Policy) -> list[Entry]:
    """The entries that may be removed, oldest first; at most one verified entry per step is given.

    Never among them: a pinned one; the newest verified one (so neither the only one); one that is
    newer than that. An entry that is not verified counts for no rule, and it stays, to be looked at
    or repaired, until `keep_last` verified ones of its step or later stand in for it.
    """
    verified = sorted((entry for entry in entries if entry.verified), key=_step, reverse=True)
    kept = {entry.step for entry in verified[: policy.keep_last]}
    if policy.keep_every is not None:
        kept |= {entry.step for entry in verified if entry.step % policy.keep_every == 0}
    measured = sorted((entry for entry in verified if _is_measured(entry)), key=_merit, reverse=True)
    kept |= {entry.step for entry in measured[: policy.keep_best]}

    doomed = [entry for entry in verified if entry.step not in kept]
    for entry in entries:
        num_stand_ins = sum(other.step >= entry.step for other in verified)
        if not entry.verified and num_stand_ins >= policy.keep_last:
            doomed.append(entry)
    return sorted((entry for entry in doomed if not entry.pinned), key=_step)


def _step(entry: Entry) -> int:
    return entry.step


def _is_measured(entry: Entry) -> bool:
    return entry.metric is not None and not math.isnan(entry.metric)


def _merit(entry: Entry) -> tuple[float, int]:
    return (-math.inf if entry.metric is None else entry.metric, entry.step)
