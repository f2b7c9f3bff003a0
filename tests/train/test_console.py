"""What people see: sensible lines, text that stays text, and nothing but text on a pipe."""

import io
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console as RichConsole

from tests.support.attempts import config_of, shown_by
from tests.support.metrics import TIMING, step_row
from tests.support.rollouts import rollout
from yaoki.journal.step_row import StepRow, StepTiming
from yaoki.train.console import Console


def row_of(**fields: Any) -> StepRow:
    timing = StepTiming(**{**TIMING, "tokens_per_s": 1234.5, "step_s": 0.75}, num_reused_rollouts=0)
    plain = {"reward": 0.5, "accuracy": 0.625, "length": 17.25, "kl_to_ref": 0.0123}
    return step_row(12, timing=timing, **{**plain, **fields})


def console_and_output(every: int = 1, total_steps: int = 0, **settings: Any) -> tuple[Console, io.StringIO]:
    output = io.StringIO()
    rich = RichConsole(file=output, **{"width": 80, **settings})
    return Console(every, rich, total_steps=total_steps), output


def test_a_line_per_step() -> None:
    console, output = console_and_output(total_steps=100)
    with console:
        console.resume_from(1)
        console.generating(6, 16)
        console.evaluating(6, 16)
        console.log(row_of())
        console.log(row_of(accuracy=None, kl_to_ref=None, policy_approx_kl=0.004))
        console.log(row_of(accuracy=None, kl_to_ref=None))
        console.close()
    header, first, second, third = output.getvalue().splitlines()
    assert header.split() == ["step", "reward", "held-out", "length", "KL", "tokens/s", "s/step"]
    assert first.split() == ["12", "0.500", "0.625", "17.2", "0.0123", "1234", "0.75"]
    assert second.split() == ["12", "0.500", "17.2", "0.0040", "1234", "0.75"]
    assert third.split()[3] == "0.0000"
    assert len({len(line) for line in (header, first, second, third)}) == 1, "columns stand in line"


def test_a_right_and_a_wrong_sample_when_it_is_their_turn() -> None:
    rollouts = [rollout(text="first wrong"), rollout(reward=1.0, text="right\none"), rollout(text="second")]
    console, output = console_and_output(every=5)
    for step in range(1, 8):
        console.samples(step, rollouts)
    lines = output.getvalue().splitlines()
    assert (
        lines
        == [
            "         1+1= <think>right\\none  right (answer 2)",
            "         1+1= <think>first wrong  wrong (answer 2)",
        ]
        * 2
    )

    console, output = console_and_output(every=0)
    console.samples(1, rollouts)
    assert output.getvalue() == ""


@pytest.mark.parametrize(
    "text", ["[red]x[/]", "[/nothing]", "a\\[b]", "ends with \\", ":smile: :x:", "[link=u]"]
)
def test_text_is_not_markup(text: str) -> None:
    console, output = console_and_output()
    console.note(text)
    console.warn(text)
    console.headline(text)
    console.samples(1, [rollout(text=text, problem=text)])
    assert output.getvalue().splitlines() == [
        text,
        f"warning: {text}",
        text,
        f"         {text} <think>{text}  wrong (answer 2)",
    ]


@given(st.text(max_size=500))
def test_no_sample_breaks_the_screen(text: str) -> None:
    console, output = console_and_output()
    console.samples(1, [rollout(text=text, problem=text)])
    assert output.getvalue()[:-1].isprintable()
    assert output.getvalue().count("\n") == 1


def test_long_lines_are_not_broken_in_a_log() -> None:
    console, output = console_and_output()
    path = "/somewhere/" + "a long name " * 20
    console.note(path)
    console.warn(path)
    console.samples(1, [rollout(text="x" * 1000)])
    note, warning, sample = output.getvalue().splitlines()
    assert note == path
    assert warning == f"warning: {path}"
    assert "x" * 400 + " ..." in sample
    assert "x" * 401 not in sample


def test_long_work_says_how_far_it_is() -> None:
    console, output = console_and_output()
    with console, console.work("making") as advance:
        for done in range(1, 101):
            advance(done, 100)
    lines = output.getvalue().splitlines()
    assert lines[-1] == "making: 100/100"
    assert 10 <= len(lines) <= 12


def test_a_pipe_gets_no_escape_codes() -> None:
    console, output = console_and_output(total_steps=3)
    with console:
        console.warn("careful")
        console.resume_from(1)
        console.log(row_of())
        console.samples(1, [rollout(reward=1.0)])
    assert "\x1b" not in output.getvalue()


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    def on_a_terminal() -> str:
        console, output = console_and_output(force_terminal=True, color_system="standard")
        console.warn("careful")
        return output.getvalue()

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[33m" in on_a_terminal()
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[33m" not in on_a_terminal()


def test_bars_leave_the_terminal_clean() -> None:
    console, output = console_and_output(total_steps=3, force_terminal=True, color_system=None)
    with console:
        console.resume_from(2)
        console.generating(6, 16)
        console.generating(16, 16)
        console.log(row_of())
    assert "training" in output.getvalue()
    assert "0.625" in output.getvalue()


def test_an_attempt_says_what_it_starts_from_and_how_long_that_took(unfinished: Path) -> None:
    first, *lines = shown_by(unfinished, config_of()).splitlines()
    assert first.endswith(
        "attempt 2: resuming from step-00000002, grade exact: the same bits as a run that "
        "was never interrupted"
    )
    time = r"\d+\.\d s"
    (ready,) = [line for line in lines if line.startswith("ready after")]
    assert re.fullmatch(
        rf"ready after {time}: choose {time}, build {time}, restore {time}, engine {time}", ready
    )
