"""Rollouts, prompts and journals for tests."""

import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from yaoki.journal.journal import RolloutJournal
from yaoki.journal.segments import JournalIdentity
from yaoki.types import (
    Completion,
    FinishReason,
    JudgedCompletion,
    Prompt,
    Rollout,
    RolloutKey,
    Task,
    Verdict,
    VerdictReason,
)

STEP, VERSION = 7, 5
GROUP_SIZE = 2
NAN = struct.unpack("<d", struct.pack("<Q", 0x7FF8_0000_0000_002A))[0]

PROMPTS = [
    Prompt(Task(f"{index:016x}", f"{index}+{index}=", str(2 * index), "sums.json"), "", (1, 2, index))
    for index in range(4)
]
KEYS = [RolloutKey(STEP, index, sample) for index in range(len(PROMPTS)) for sample in range(GROUP_SIZE)]


def rollout(
    prompt: int, sample: int, *, reward: float = 1.0, variant: int = 0, num_tokens: int = 3
) -> Rollout:
    """The completion of a key of STEP; another `variant` has other log-probabilities."""
    ids = tuple(100 * prompt + 10 * sample + token for token in range(num_tokens))
    completion = Completion(ids, tuple(-0.1 - variant - token for token in ids), f"= {ids}", FinishReason.EOS)
    verdict = Verdict(reward, VerdictReason.CORRECT if reward else VerdictReason.WRONG, str(prompt))
    return Rollout(RolloutKey(STEP, prompt, sample), VERSION, PROMPTS[prompt], completion, verdict)


def batch(keys: Sequence[RolloutKey], **changes: Any) -> list[Rollout]:
    """A micro-batch."""
    return [rollout(key.prompt, key.sample, **changes) for key in keys]


def journal(
    run: Path,
    attempt: int = 1,
    *,
    rank: int = 0,
    run_id: str = "run-1",
    config_digest: str = "c0ffee",
    flush_seconds: float = 3600.0,
    flush_rollouts: int = 10**9,
    warn: Callable[[str], None] = lambda _: None,
    **options: Any,
) -> RolloutJournal:
    """A journal that writes only when asked, unless told otherwise."""
    return RolloutJournal(
        run / "rollouts",
        JournalIdentity(run_id, config_digest, attempt, rank),
        flush_seconds=flush_seconds,
        flush_rollouts=flush_rollouts,
        warn=warn,
        **options,
    )


def bits(value: float) -> bytes:
    return struct.pack("<d", value)


def same_bits(one: JudgedCompletion, other: JudgedCompletion) -> bool:
    """Equal to the last bit, also where numbers compare as different or as equal."""
    return _content(one) == _content(other)


def _content(judged: JudgedCompletion) -> tuple[object, ...]:
    completion, verdict = judged.completion, judged.verdict
    return (
        completion.token_ids,
        tuple(map(bits, completion.logprobs)),
        completion.text,
        completion.finish_reason,
        completion.not_sampled,
        bits(verdict.reward),
        verdict.reason,
        verdict.extracted,
    )


_ODD = ["\0", "\n", "a", "\N{GRINNING FACE}", "\ufffd", "\N{COMBINING ACUTE ACCENT}"]
texts = st.text() | st.lists(st.sampled_from(_ODD), max_size=6).map("".join)
"""Any valid Unicode."""
floats = st.integers(0, 2**64 - 1).map(lambda n: struct.unpack("<d", n.to_bytes(8, "little"))[0])
"""Any bits that a double can have."""


@st.composite
def completions(draw: st.DrawFn) -> Completion:
    ids = draw(st.lists(st.integers(0, 2**63 - 1), max_size=20))
    logprobs = draw(
        st.lists(
            st.one_of(floats, st.sampled_from([0.0, -0.0, -float("inf"), NAN])),
            min_size=len(ids),
            max_size=len(ids),
        )
    )
    not_sampled = draw(st.sets(st.integers(0, len(ids) - 1))) if ids else set()
    finish = draw(st.sampled_from(FinishReason))
    return Completion(tuple(ids), tuple(logprobs), draw(texts), finish, tuple(sorted(not_sampled)))


verdicts = st.builds(
    Verdict,
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(VerdictReason),
    st.none() | texts,
)


@st.composite
def steps(draw: st.DrawFn) -> tuple[list[Prompt], list[Rollout]]:
    """Prompts, and some rollouts of them."""
    prompts = [
        Prompt(
            Task(f"{index}", draw(texts), draw(texts), draw(texts)),
            draw(texts),
            tuple(draw(st.lists(st.integers(0, 2**40), max_size=5))),
        )
        for index in range(draw(st.integers(1, 3)))
    ]
    coordinates = st.tuples(st.integers(0, len(prompts) - 1), st.integers(0, 3))
    keys = draw(st.lists(coordinates, min_size=1, max_size=6, unique=True))
    return prompts, [
        Rollout(RolloutKey(STEP, index, sample), VERSION, prompts[index], draw(completions()), draw(verdicts))
        for index, sample in keys
    ]
