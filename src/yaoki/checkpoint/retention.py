"""Which checkpoints stay, which may go, and why: a pure function from a list to a list. No torch, no files.

It knows steps and standings; how a checkpoint is verified or removed is not its business. It asks no
clock: an instant to compare with is part of the policy, so that the caller's clock is the only one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from yaoki.errors import UsageError


class Standing(StrEnum):
    """What is known of a checkpoint. Of a step at most one is VERIFIED or UNREAD: it stands for it."""

    VERIFIED = "verified"
    """Read in full by this process and found whole."""
    UNREAD = "unread"
    """It has the name of a committed checkpoint; its bytes were not read."""
    SPARE = "spare"
    """Found corrupt, or another one stands for its step."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A checkpoint as retention sees it."""

    step: int
    standing: Standing
    metric: float | None = None
    """Higher is better; None or NaN: unknown."""
    pins: tuple[str, ...] = ()
    """Names that hold it."""
    created_unix_s: float | None = None
    """When it was committed; None: unknown."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What to keep: a checkpoint stays if any of the rules wants it."""

    keep_last: int
    """The newest so many that are verified, at least 1."""
    keep_every: int | None = None
    """Those whose step is a multiple of this."""
    keep_best: int = 0
    """The best so many by metric; of equal ones the newer."""
    keep_since_unix_s: float | None = None
    """Those committed at this instant or later; one of unknown age stays too."""

    def __post_init__(self) -> None:
        for name, value, least in (
            ("keep_last", self.keep_last, 1),
            ("keep_every", self.keep_every, 1),
            ("keep_best", self.keep_best, 0),
        ):
            if value is not None and value < least:
                raise UsageError(f"{name} is {value}", hint=f"set {name} to {least} or more")


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of one checkpoint."""

    entry: Entry
    reasons: tuple[str, ...]
    """Why it stays, in words; none: it goes."""

    @property
    def stays(self) -> bool:
        return bool(self.reasons)


def decide(entries: Sequence[Entry], policy: Policy) -> list[Decision]:
    """One decision per entry, in the order given.

    Whatever goes is of the same step as the oldest of `keep_last` verified ones, or older. So nothing goes
    while fewer than `keep_last` are verified, the newest verified one stays (a resume and the journal's
    replay start there), and so does what is corrupt and newer, to be looked at or repaired. A SPARE one
    counts for no rule.
    """
    verified = sorted((e.step for e in entries if e.standing is Standing.VERIFIED), reverse=True)
    newest = set(verified[: policy.keep_last])
    oldest_needed = verified[policy.keep_last - 1] if len(verified) >= policy.keep_last else None
    best = _best(entries, policy.keep_best)
    return [
        Decision(entry, (*_safety(entry, newest, oldest_needed, policy), *_rules(entry, best, policy)))
        for entry in entries
    ]


def _safety(entry: Entry, newest: set[int], oldest_needed: int | None, policy: Policy) -> list[str]:
    """Why nobody's policy may let it go."""
    reasons = [f"pinned as {name}" for name in entry.pins]
    if entry.standing is Standing.VERIFIED and entry.step in newest:
        is_first = entry.step == max(newest)
        reasons.append("the newest verified one" if is_first else f"one of the newest {policy.keep_last}")
    elif oldest_needed is None:
        reasons.append(f"{len(newest)} of {policy.keep_last} verified ones are there, so nothing may go")
    elif entry.step > oldest_needed:
        reasons.append(f"newer than the {policy.keep_last} verified ones that would stand in for it")
    return reasons


def _rules(entry: Entry, best: set[int], policy: Policy) -> list[str]:
    """What the policy wants it for."""
    if entry.standing is Standing.SPARE:
        return []
    reasons = []
    if policy.keep_every is not None and entry.step % policy.keep_every == 0:
        reasons.append(f"its step is a multiple of {policy.keep_every}")
    if entry.step in best:
        reasons.append(f"one of the best {policy.keep_best} ({entry.metric})")
    if policy.keep_since_unix_s is not None:
        if entry.created_unix_s is None:
            reasons.append("its age is unknown")
        elif entry.created_unix_s >= policy.keep_since_unix_s:
            reasons.append("it is young")
    return reasons


def _best(entries: Sequence[Entry], number: int) -> set[int]:
    """Steps of the best by metric."""
    measured = [
        (entry.metric, entry.step)
        for entry in entries
        if entry.standing is not Standing.SPARE and entry.metric is not None and not math.isnan(entry.metric)
    ]
    return {step for _, step in sorted(measured, reverse=True)[:number]}
