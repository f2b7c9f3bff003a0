import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yaoki.rewards.expressions import MAX_EXPRESSION_CHARS, expression_value


def written(draw: random.Random, depth: int) -> str:
    if depth == 0 or draw.random() < 0.3:
        return str(draw.randint(0, 12))
    inner = f"{written(draw, depth - 1)} {draw.choice('+-*/')} {written(draw, depth - 1)}"
    return f"({inner})" if draw.random() < 0.5 else inner


@given(st.randoms(use_true_random=False))
def test_agrees_with_python(draw):
    text = written(draw, 4)
    wrapped = "".join(f"Fraction({part})" if part.isdigit() else part for part in split_numbers(text))
    try:
        expected = eval(wrapped)
    except ZeroDivisionError:
        expected = None
    found = expression_value(text)
    if expected is None or len(text) > MAX_EXPRESSION_CHARS:
        assert found is None
    else:
        assert found == (Fraction(expected), [int(part) for part in split_numbers(text) if part.isdigit()])


def split_numbers(text: str) -> list[str]:
    return "".join(c if c.isdigit() else f" {c} " for c in text).split()


def test_latex_signs_are_read():
    assert expression_value(r"\left(3 + 5\right) \times 8 \div 4 \cdot 2") == (Fraction(32), [3, 5, 8, 4, 2])


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "()", "+", "1+", "+1", "-1", "1 2", "1 + * 2", "(1", "1)", "1)(2", "1)+(2", "(1)(2)", "2(3)",
        "1/0", "1/(2-2)", "2**3", "2^3", "9**9**9**9", "1.5", "1,5", "x", "__import__('os')", "1=1", "\0",
        "\ud800", "1;2", "(" * 100, ")" * 100, "1" * 10, "(" * 10**6, "1+" * 10**6 + "1", "\u0663",
    ],
)  # fmt: skip
def test_anything_else_has_no_value(text):
    assert expression_value(text) is None


@given(st.text())
def test_no_text_raises(text):
    expression_value(text)


@given(st.text(alphabet="0123456789+-*/() "))
def test_no_nearly_right_text_raises(text):
    expression_value(text)
