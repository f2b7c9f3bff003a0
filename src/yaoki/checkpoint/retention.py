"""Decides which checkpoints are kept: a pure function, without torch, files or a clock.

The only time it compares with is part of the policy, so the caller's clock is the only one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from yaoki.errors import UsageError


class Standing(StrEnum):
    """What is known about a checkpoint. At most one of each step is VERIFIED or UNREAD."""

    VERIFIED = "verified"
    """Read in full by this process, and undamaged."""
    UNREAD = "unread"
    """Committed, going by its name; not read."""
    SPARE = "spare"
    """Damaged, or another checkpoint of the same step is used instead."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What the decision about a checkpoint depends on."""

    step: int
    standing: Standing
    metric: float | None = None
    """Higher is better; None or NaN if unknown."""
    pins: tuple[str, ...] = ()
    """Names under which it is pinned."""
    created_unix_s: float | None = None
    """When it was committed; None if unknown."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What to keep: a checkpoint stays if any rule applies to it."""

    keep_last: int
    """The newest N that are verified; at least 1."""
    keep_every: int | None = None
    """Every one whose step is a multiple of this."""
    keep_best: int = 0
    """The best N by metric; of equal ones the newer."""
    keep_since_unix_s: float | None = None
    """Every one committed at this time or later, or of unknown age."""

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
    """Whether one checkpoint stays."""

    entry: Entry
    reasons: tuple[str, ...]
    """Why it stays; empty if it may be removed."""

    @property
    def stays(self) -> bool:
        return bool(self.reasons)


def decide(entries: Sequence[Entry], policy: Policy) -> list[Decision]:
    """One decision per entry, in the order given.

    Only checkpoints not newer than the oldest of the newest `keep_last` verified ones are removed. So nothing
    is removed while fewer than `keep_last` are verified; the newest verified one stays, because a resume and
    the replay of the journal start there; and newer, damaged ones stay, so that they can be inspected or
    repaired. The rules of the policy do not apply to SPARE ones.
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
    """Reasons that hold under any policy."""
    reasons = [f"pinned as {name}" for name in entry.pins]
    if entry.standing is Standing.VERIFIED and entry.step in newest:
        is_first = entry.step == max(newest)
        reasons.append("the newest verified one" if is_first else f"one of the newest {policy.keep_last}")
    elif oldest_needed is None:
        reasons.append(f"nothing is removed while {len(newest)} of {policy.keep_last} are verified")
    elif entry.step > oldest_needed:
        reasons.append(f"newer than the oldest of the {policy.keep_last} verified ones")
    return reasons


def _rules(entry: Entry, best: set[int], policy: Policy) -> list[str]:
    """Rules of the policy that apply."""
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
            reasons.append("committed recently enough")
    return reasons


def _best(entries: Sequence[Entry], number: int) -> set[int]:
    """Steps of the best N by metric."""
    measured = [
        (entry.metric, entry.step)
        for entry in entries
        if entry.standing is not Standing.SPARE and entry.metric is not None and not math.isnan(entry.metric)
    ]
    return {step for _, step in sorted(measured, reverse=True)[:number]}
