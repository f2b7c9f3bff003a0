import pytest
from hypothesis import given
from hypothesis import strategies as st

from yaoki.rewards.math_answers import answers_equal


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("73", "73"), ("73", " 073 "), ("1,234", "1234"), ("10,\\!080", "10080"), ("\\$32,\\!348", "32348"),
        ("-0", "0"), ("5", "+5"), ("3", "3.0"), ("3", "x=3"), ("\\frac{14}{3}", "14/3"), ("\\frac12", "0.5"),
        ("0.5", "50\\%"), ("p - q", "-q+p"), ("90^\\circ", "90"), ("\\text{Evelyn}", "\\text{ Evelyn }"),
        ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3,\\pi/2)"), ("(5,\\infty)", "(5, +\\infty)"),
        ("(3,4]", "(3, 4]"), ("(0,9) \\cup (9,36)", "(9,36)\\cup(0,9)"), ("1\\pm 2", "3,-1"),
        ("$5$", "5"), ("9" * 5000, "0" + "9" * 5000),
    ],
)  # fmt: skip
def test_equal(reference, answer):
    assert answers_equal(reference, answer)


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("73", "74"), ("73", "-73"), ("1234", "1, 234"), ("1", "(1, 1, \\ldots, 1)"),
        ("(1, 1, \\ldots, 1)", "1"),
        ("3", "3,4"), ("3", "3 \\text{ or } 4"), ("3", ""), ("(1,2)", "[1,2]"), ("\\frac{1}{3}", "0.33"),
        ("\\frac{1}{2}", "\\frac{1}{"), ("9" * 5000, "9" * 5001), ("1", "9" * 5000), ("x", "2x"),
    ],
)  # fmt: skip
def test_different(reference, answer):
    assert not answers_equal(reference, answer)


@pytest.mark.parametrize(
    ("reference", "answer", "equal"),
    [
        ("1,2", "1, 2", True),
        ("1,2", "2,1", False),
        ("1,2", "1,2,3", False),
        ("(1,2)", "(2,1)", False),
        ("1,2", "(1,2)", True),
        ("1,2", "(2,1)", False),
        ("(1,2)", "2,1", False),
        ("\\frac12, 3", "0.5, 3.0", True),
        ("\\frac12, 3", "3, 0.5", False),
        ("(1,2),(3,4)", "(1,2),(3,4)", True),
        ("(1,2),(3,4)", "(3,4),(1,2)", False),
        ("\\{1,2\\}", "\\{2,1\\}", True),
        ("\\{1,2\\}", "2,1", True),
        ("1,2", "\\{2,1\\}", True),
        ("a=1, b=2", "b=2, a=1", True),
        ("a=1, b=2", "a=2, b=1", False),
    ],
)
def test_only_sets_and_named_items_come_in_any_order(reference, answer, equal):
    assert answers_equal(reference, answer) is equal


@given(st.integers(), st.integers())
def test_integers_are_equal_as_numbers(left, right):
    assert answers_equal(f"{left:,}", str(left))
    assert answers_equal(str(left), str(right)) is (left == right)


@given(st.text(alphabet="0123456789,.-+{}()\\ax $", min_size=1, max_size=8))
def test_everything_equals_itself(text):
    assert answers_equal(text, text)
