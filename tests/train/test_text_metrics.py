import pytest
from hypothesis import given
from hypothesis import strategies as st

from yaoki.train.step_metrics import REFLECTION_WORDS, count_reflection_words, repetition_score


@pytest.mark.parametrize(
    ("token_ids", "score"),
    [
        ([], 0.0),
        ([1, 1, 1], 0.0),
        ([1, 1, 1, 1], 0.0),
        ([1, 1, 1, 1, 1], 0.5),
        ([1, 2, 3, 4, 1, 2, 3, 4], 0.2),
        (list(range(50)), 0.0),
        ([1, 2] * 500, 1 - 2 / 997),
    ],
)
def test_repetition_by_hand(token_ids, score):
    assert repetition_score(token_ids) == pytest.approx(score)
    assert repetition_score(tuple(token_ids)) == repetition_score(token_ids)


@given(st.lists(st.integers(0, 3), max_size=60))
def test_repetition_is_a_share_and_grows_when_a_text_is_said_twice(token_ids):
    score = repetition_score(token_ids)
    assert 0 <= score < 1
    if len(token_ids) >= 4:
        assert repetition_score(token_ids * 3) > score


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("Wait, I should recheck. WAIT!", 3),
        ("waiting, awaits, await, however's, how ever", 1),
        ("alternatively:retry\nHowever", 3),
    ],
)
def test_reflection_words(text, count):
    assert count_reflection_words(text) == count


def test_each_reflection_word_counts():
    assert count_reflection_words(" ".join(REFLECTION_WORDS)) == len(REFLECTION_WORDS) == 5
