"""Rollouts, prompts and journals for tests."""

import struct
from collections.abc import Sequence
from pathlib import Path

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
PLACES = [(index, sample) for index in range(len(PROMPTS)) for sample in range(GROUP_SIZE)]


def rollout(
    prompt: int, sample: int, *, reward: float = 1.0, variant: int = 0, num_tokens: int = 3
) -> Rollout:
    """The completion at a place; another `variant` has other log-probabilities."""
    ids = tuple(100 * prompt + 10 * sample + token for token in range(num_tokens))
    completion = Completion(ids, tuple(-0.1 - variant - token for token in ids), f"= {ids}", FinishReason.EOS)
    verdict = Verdict(reward, VerdictReason.CORRECT if reward else VerdictReason.WRONG, str(prompt))
    return Rollout(RolloutKey(STEP, prompt, sample), VERSION, PROMPTS[prompt], completion, verdict)


def batch(places: Sequence[tuple[int, int]], **changes: int) -> list[Rollout]:
    """A micro-batch."""
    return [rollout(prompt, sample, **changes) for prompt, sample in places]


def sample_of(rollout: Rollout) -> JudgedCompletion:
    return rollout.judged


def journal(
    run: Path,
    attempt: int = 1,
    *,
    rank: int = 0,
    run_id: str = "run-1",
    config_digest: str = "c0ffee",
    flush_seconds: float = 3600.0,
    flush_rollouts: int = 10**9,
) -> RolloutJournal:
    """A journal that writes only when asked, unless told otherwise."""
    return RolloutJournal(
        run / "rollouts",
        JournalIdentity(run_id, config_digest, attempt, rank),
        flush_seconds=flush_seconds,
        flush_rollouts=flush_rollouts,
    )


def bits(value: float) -> bytes:
    return struct.pack("<d", value)


def same_bits(one: JudgedCompletion, other: JudgedCompletion) -> bool:
    """Equal to the last bit, also where numbers compare as different or as equal."""
    return repr(
        (one.completion.token_ids, one.completion.text, one.completion.finish_reason, one.verdict)
    ) == repr(
        (other.completion.token_ids, other.completion.text, other.completion.finish_reason, other.verdict)
    ) and list(map(bits, one.completion.logprobs)) == list(map(bits, other.completion.logprobs))


_ODD = ["\0", "\n", "a", "\ud800", "\udfff", "\ud83d", "\ude00", "\N{GRINNING FACE}", "\ufffd"]
texts = st.text() | st.lists(st.sampled_from(_ODD), max_size=6).map("".join)
"""Any Python string, with halves of surrogate pairs, also side by side."""
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
    return Completion(tuple(ids), tuple(logprobs), draw(texts), draw(st.sampled_from(FinishReason)))


verdicts = st.builds(
    Verdict,
    st.sampled_from([0.0, 1.0]),
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
    places = draw(
        st.lists(
            st.tuples(st.integers(0, len(prompts) - 1), st.integers(0, 3)),
            min_size=1,
            max_size=6,
            unique=True,
        )
    )
    return prompts, [
        Rollout(RolloutKey(STEP, index, sample), VERSION, prompts[index], draw(completions()), draw(verdicts))
        for index, sample in places
    ]
