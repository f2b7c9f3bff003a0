import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yaoki.rewards.answers import extract_answer, has_format

FORM = r"thoughts</think><answer>\boxed{73}</answer>"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (FORM, "73"),
        (r"<answer>The result is \boxed{ 73 }.</answer>", "73"),
        (r"<answer>\boxed {7}</answer>", "7"),
        (r"<answer>\boxed{\frac{1}{2}}</answer>", r"\frac{1}{2}"),
        (r"<answer>\boxed{1} or \boxed{2}</answer>", "2"),
        (r"<answer>\boxed{1}</answer> no, <answer>\boxed{2}</answer>", "2"),
        (r"<answer>\boxed{1}</answer> and <answer>nothing</answer>", "1"),
        (r"<answer>\boxed{1} <answer>\boxed{2}</answer>", "2"),
        (r"<answer>\boxed{1}</answer> <answer>\boxed{2}", "1"),
        (r"<answer>\boxed{1}</answer> </answer>", "1"),
        (r"<answer>\boxed{\{1, 2\}}</answer>", r"\{1, 2\}"),
        (r"<answer>\boxed{\left\{ x \right.}</answer>", r"\left\{ x \right."),
        (r"<answer>}} \boxed{3} {{</answer>", "3"),
        (r"<answer>\boxed{1} \boxed{2</answer>", "1"),
        (r"<answer>\boxed{a \boxed{2}</answer>", "2"),
        (r"<answer>\boxed{\boxed{2}}</answer>", "2"),
        ("<answer>\\boxed{a\0b\nc}</answer>", "a\0b\nc"),
        (r"<answer>\boxed{1\\}</answer>", r"1\\"),
        (r"\boxed{73}", None),
        (r"<answer>73</answer>", None),
        (r"<answer>\boxed{73}", None),
        (r"\boxed{73}</answer>", None),
        (r"</answer>\boxed{73}<answer>", None),
        (r"<answer>\boxed{73</answer>}", None),
        (r"<answer>\boxed{\frac{1}{2}</answer>", None),
        (r"<answer>\boxed{1\}</answer>", None),
        (r"<answer>\boxed{ }</answer>", None),
        (r"<answer>\boxed</answer>", None),
        (r"<ANSWER>\boxed{1}</ANSWER>", None),
        ("", None),
    ],
)
def test_extraction(text, answer):
    assert extract_answer(text) == answer


balanced = st.recursive(
    st.text(alphabet="ab 1+", max_size=5),
    lambda inner: st.lists(inner, max_size=3).map(lambda p: "{" + "".join(p) + "}"),
)


@given(before=st.text(), content=balanced.filter(str.strip), between=st.text(alphabet="xy {}"))
def test_whatever_stands_before_a_balanced_box_does_not_matter(before, content, between):
    text = before + r"</answer><answer>" + between + r"\boxed{" + content + "} so</answer>"
    assert extract_answer(text) == content.strip()


pieces = st.sampled_from(
    ["<answer>", "</answer>", "\\boxed{", "\\boxed", "{", "}", "\\{", "\\}", "\\", "\\\\", "a", " ", "\0"]
)


@given(st.lists(pieces, max_size=25).map("".join))
def test_agrees_with_a_slow_search(text):
    assert extract_answer(text) == slow_extract(text)


def slow_extract(text: str) -> str | None:
    """The definition, tried at every place in quadratic time."""
    end = len(text)
    while (end := text.rfind("</answer>", 0, end)) >= 0:
        start = text.rfind("<answer>", 0, end)
        if start < 0:
            return None
        block = text[start + len("<answer>") : end]
        for place in range(len(block) - 1, -1, -1):
            rest = block[place:]
            opened = rest.removeprefix("\\boxed").lstrip()
            if rest.startswith("\\boxed") and opened.startswith("{"):
                content = slow_content(opened[1:])
                if content is not None:
                    return content.strip() or None
        end = start
    return None


def slow_content(text: str) -> str | None:
    depth, place = 1, 0
    while place < len(text):
        if text[place] == "\\" and text[place + 1 : place + 2] in ("\\", "{", "}"):
            place += 2
            continue
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[:place]
        place += 1
    return None


MEGABYTE = 1_000_000
HOSTILE = [
    "{" * MEGABYTE,
    "<answer>" + "{" * MEGABYTE + "</answer>",
    "<answer>\\boxed" + "{" * MEGABYTE + "</answer>",
    "<answer>" + "\\boxed{" * (MEGABYTE // 7) + "</answer>",
    "<answer>\\boxed{" + "{}" * (MEGABYTE // 2) + "</answer>",
    "<answer>\\boxed{" + "\\{" * (MEGABYTE // 2) + "</answer>",
    "<answer>\\boxed" + " " * MEGABYTE + "</answer>",
    "<answer>" * (MEGABYTE // 8) + "\\boxed{" + "</answer>" * (MEGABYTE // 9),
    "<answer></answer>" * (MEGABYTE // 17),
    "\0" * MEGABYTE,
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_megabyte_costs_little(text):
    # Quadratic time would be hours and recursion an error; the bound is loose for busy machines.
    started_s = time.process_time()
    assert extract_answer(text) is None
    assert not has_format(text)
    assert time.process_time() - started_s < 5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (FORM, True),
        ("x </think>\n<answer> so \\boxed{7} </answer>\n", True),
        ("</think><answer>\\boxed{7}</answer>", True),
        ("<answer>\\boxed{7}</answer>", False),
        ("x</think> so <answer>\\boxed{7}</answer>", False),
        ("x</think><answer>\\boxed{7}</answer> I am sure", False),
        ("x</think><answer>7</answer>", False),
        ("x</think><answer>\\boxed{1}</answer><answer>\\boxed{7}</answer>", False),
        ("x</think><answer><answer>\\boxed{7}</answer>", False),
        ("", False),
    ],
)
def test_format(text, expected):
    assert has_format(text) is expected
