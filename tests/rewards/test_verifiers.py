import subprocess
import sys

import pytest
import user_verifiers

from yaoki.errors import UsageError
from yaoki.rewards.verifiers import CountdownVerifier, MathVerifier, load_verifier
from yaoki.types import VerdictReason, make_task

SUM = make_task("47+38-12=", "73", "arithmetic")
COUNTDOWN = make_task("Make 43", "3 5 8 -> 43", "countdown")


def boxed(answer: str) -> str:
    return f"so</think><answer>\\boxed{{{answer}}}</answer>"


@pytest.mark.parametrize(
    ("text", "reward", "reason", "extracted"),
    [
        (boxed("73"), 1, VerdictReason.CORRECT, "73"),
        (boxed("\\frac{146}{2}"), 1, VerdictReason.CORRECT, "\\frac{146}{2}"),
        (boxed("74"), 0, VerdictReason.WRONG, "74"),
        ("73", 0, VerdictReason.NO_ANSWER, None),
        ("", 0, VerdictReason.NO_ANSWER, None),
    ],
)
def test_math(text, reward, reason, extracted):
    verdict = MathVerifier()(SUM, text)
    assert (verdict.reward, verdict.reason, verdict.extracted) == (reward, reason, extracted)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("5*8+3", VerdictReason.CORRECT),
        ("3 + 8 \\times 5", VerdictReason.CORRECT),
        ("43", VerdictReason.WRONG),
        ("5*8+3+0", VerdictReason.WRONG),
        ("5*8+3*5/5", VerdictReason.WRONG),
        ("5*8-3", VerdictReason.WRONG),
        ("35+8", VerdictReason.WRONG),
        ("5*8+3=43", VerdictReason.WRONG),
        ("__import__('os')", VerdictReason.WRONG),
    ],
)
def test_countdown(answer, reason):
    verdict = CountdownVerifier()(COUNTDOWN, boxed(answer))
    assert verdict.reason is reason
    assert verdict.reward == (reason is VerdictReason.CORRECT)


def test_countdown_without_an_answer_and_without_a_usable_reference():
    assert CountdownVerifier()(COUNTDOWN, "5*8+3").reason is VerdictReason.NO_ANSWER
    with pytest.raises(ValueError, match="a countdown answer looks like"):
        CountdownVerifier()(SUM, boxed("73"))


def test_verifiers_by_name_and_by_path():
    assert isinstance(load_verifier("math"), MathVerifier)
    assert isinstance(load_verifier("countdown"), CountdownVerifier)
    assert isinstance(load_verifier("user_verifiers:Scripted"), user_verifiers.Scripted)
    assert load_verifier("user_verifiers:scripted") is user_verifiers.scripted
    assert load_verifier("user_verifiers:rewards_what_it_is_told") is user_verifiers.rewards_what_it_is_told
    assert load_verifier("user_verifiers:Scripted.__call__") is user_verifiers.Scripted.__call__


@pytest.mark.parametrize(
    ("spec", "message", "hint"),
    [
        ("maths", "no verifier 'maths'", "did you mean 'math'"),
        ("user_verifiers", "no verifier 'user_verifiers'", "package.module:attribute"),
        (":x", "no verifier ':x'", "known names: countdown, math"),
        ("no.such.module:x", "No module named 'no'", "PYTHONPATH"),
        ("user_verifiers:Scriptd", "there is no 'Scriptd'", "did you mean 'Scripted'"),
        ("user_verifiers:Scripted.x.y", "there is no 'x'", "known names"),
        ("user_verifiers:not_callable", "is a int, which cannot be called", "verifier(task, text)"),
        ("user_verifiers:NeedsArguments", "without arguments", "instance"),
    ],
)
def test_what_cannot_be_loaded_is_a_usage_error(spec, message, hint):
    with pytest.raises(UsageError) as caught:
        load_verifier(spec)
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")


def test_numbers_are_judged_without_sympy_and_without_torch():
    code = (
        "import sys; from yaoki.rewards.verifiers import MathVerifier; from yaoki.types import make_task;"
        "import yaoki.data.files, yaoki.data.prompts, yaoki.rewards.pool;"
        "assert MathVerifier()(make_task('p', '1,234', 's'), '<answer>\\\\boxed{1234}</answer>').reward == 1;"
        "assert not {'torch', 'transformers', 'sympy', 'pyarrow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
