"""Where a completion ends, against decoding everything after every token."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from yaoki.models.builtin import END_OF_TEXT, MARKS, tiny_tokenizer
from yaoki.rollout.engines.stopping import StopCondition
from yaoki.types import FinishReason

TOKENIZER = tiny_tokenizer()
EOS = TOKENIZER.eos_token_id


def bytes_of(text: str) -> list[int]:
    """Token ids that spell a text byte by byte, marks too."""
    return [token for character in text for token in TOKENIZER(character)["input_ids"]]


def run(stop: Sequence[str], tokens: Sequence[int]) -> tuple[int, FinishReason] | None:
    """Number of tokens at which the completion ends, and why."""
    condition = StopCondition(TOKENIZER, stop)
    for end in range(1, len(tokens) + 1):
        if (reason := condition.check(tokens[:end])) is not None:
            return end, reason
    return None


def naive(stop: Sequence[str], tokens: Sequence[int]) -> tuple[int, FinishReason] | None:
    for end in range(1, len(tokens) + 1):
        if tokens[end - 1] == EOS:
            return end, FinishReason.EOS
        if any(text in TOKENIZER.decode(tokens[:end]) for text in stop):
            return end, FinishReason.STOP
    return None


STOP, MARK = FinishReason.STOP, [TOKENIZER.convert_tokens_to_ids(mark) for mark in MARKS]


@pytest.mark.parametrize(
    ("stop", "tokens", "end"),
    [
        (["</answer>"], [*bytes_of("ab"), MARK[3], *bytes_of("c")], (3, STOP)),
        (["</answer>"], bytes_of("x</answer>y"), (10, STOP)),
        (["</answer>"], bytes_of("</answer"), None),
        (["hin"], [*bytes_of("a"), MARK[0], *bytes_of("b")], (2, STOP)),
        (["k>a"], [MARK[0], *bytes_of("ab")], (2, STOP)),
        (["a<th"], [*bytes_of("a"), MARK[0]], (2, STOP)),
        (["think></think"], [MARK[0], MARK[1]], (2, STOP)),
        (["aa"], bytes_of("abaab"), (4, STOP)),
        (["aa"], bytes_of("aaaa"), (2, STOP)),
        (["b", "ab"], bytes_of("aab"), (3, STOP)),
        (["\u00e9"], bytes_of("e\u00e9"), (3, STOP)),
        (["\U0001f9ee!"], bytes_of("\U0001f9ee\U0001f9ee!"), (9, STOP)),
        (["\n\n"], bytes_of("\n \n\n"), (4, STOP)),
        ([END_OF_TEXT], [EOS], (1, FinishReason.EOS)),
        (["b"], [*bytes_of("a"), EOS], (2, FinishReason.EOS)),
        ([], bytes_of("</answer>"), None),
        ([], [EOS], (1, FinishReason.EOS)),
    ],
)
def test_where_it_ends(stop: list[str], tokens: list[int], end: tuple[int, FinishReason] | None) -> None:
    assert run(stop, tokens) == end
    assert naive(stop, tokens) == end


stops = st.lists(
    st.sampled_from(
        ["a", "aa", "ab", "aba", "</answer>", "<", "ans", "k><", "\u00e9", "a\u00e9", "\U0001f9ee",
         "\u20ac\u00e9", "\\boxed{a", "{", " ", " a", "\n"]
    )
    | st.text(alphabet="ab<\u00e9\u20ac", min_size=1, max_size=3),
    max_size=3,
)  # fmt: skip
# Text byte by byte, marks, halves of characters, anything.
tokens = st.lists(
    st.text(alphabet="aab<>\u00e9\u20ac\U0001f9ee \n", max_size=3).map(bytes_of)
    | st.sampled_from(MARK).map(lambda token: [token])
    | st.integers(0, len(TOKENIZER) - 1).map(lambda token: [token])
    | st.just(bytes_of("</answer>")),
    max_size=8,
).map(lambda parts: [token for part in parts for token in part])


@given(stops, tokens)
def test_against_decoding_everything(stop: list[str], ids: list[int]) -> None:
    assert run(stop, ids) == naive(stop, ids)


def test_text_is_decoded_only_where_it_may_end(monkeypatch: pytest.MonkeyPatch) -> None:
    condition = StopCondition(TOKENIZER, ["</answer>"])
    decoded = []
    monkeypatch.setattr(
        PreTrainedTokenizerBase,
        "decode",
        lambda self, ids, **_: decoded.append(list(ids)) or "",
        raising=True,
    )
    ids = bytes_of("abcdefghijklm" * 20)
    assert all(condition.check(ids[:end]) is None for end in range(1, len(ids)))
    assert decoded == []
    condition.check([*ids, MARK[3]])
    assert decoded
    assert max(map(len, decoded)) <= len("</answer>") + 1
