"""A step that is done again is held to what was recorded of it; rows go to every tracker."""

import io
from typing import Any

import pytest
from rich.console import Console as RichConsole

from tests.support.metrics import TIMING, step_row
from yaoki.errors import DivergenceError
from yaoki.journal.step_row import StepRow, StepTiming
from yaoki.train.console import Console
from yaoki.train.recorder import RecordedSteps, StepRecorder

BITS = {"rollouts": "1", "policy.params": "2", "critic.params": "3"}


def row(
    step: int = 5, *, attempt: int = 1, history: str = "h", num_reused: int = 0, **fields: Any
) -> StepRow:
    timing = StepTiming(**TIMING, num_reused_rollouts=num_reused)
    return step_row(step, attempt, history=history, timing=timing, **{"fingerprint": BITS, **fields})


class Rows:
    """A tracker that keeps rows."""

    def __init__(self) -> None:
        self.rows: list[StepRow] = []

    def resume_from(self, step: int) -> None:
        raise AssertionError("the recorder logs, no more")

    def log(self, row: StepRow) -> None:
        self.rows.append(row)

    def close(self) -> None:
        raise AssertionError("the recorder logs, no more")


def recorder(
    *recorded: StepRow, on_divergence: Any = "stop", replay_only: bool = False
) -> tuple[StepRecorder, list[Rows], io.StringIO]:
    """With two trackers, and what it shows."""
    output, trackers = io.StringIO(), [Rows(), Rows()]
    console = Console(0, RichConsole(file=output, width=80))
    return (
        StepRecorder(RecordedSteps(recorded), trackers, console, on_divergence, replay_only),
        trackers,
        output,
    )


def test_the_newest_row_of_a_step_and_history_counts() -> None:
    steps = RecordedSteps(
        [row(attempt=1), row(attempt=2), row(6, attempt=1), row(attempt=3, history="other")]
    )
    assert steps.of(5, "h") == row(attempt=2)
    assert steps.of(5, "other") == row(attempt=3, history="other")
    assert steps.of(6, "other") is None
    assert steps.of(7, "h") is None


def test_the_first_part_that_differs_is_named() -> None:
    steps = RecordedSteps([row(attempt=4)])
    assert steps.check(row(attempt=5)) == row(attempt=4)
    now = {**BITS, "policy.params": "x", "critic.params": "y"}
    assert steps.check(row(6, fingerprint=now)) is None, "not recorded"
    assert steps.check(row(history="other", fingerprint=now)) is None, "another environment"
    with pytest.raises(DivergenceError) as caught:
        steps.check(row(attempt=5, fingerprint=now))
    assert caught.value.message == (
        "step 5 differs from what attempt 4 did: first in policy.params (2 then, x now)"
    )
    with pytest.raises(DivergenceError, match="first in kl"):
        steps.check(row(attempt=5, fingerprint={"kl": "9", **BITS}))


def test_every_tracker_gets_the_row() -> None:
    made, trackers, output = recorder()
    made.record(row())
    assert [tracker.rows for tracker in trackers] == [[row()]] * 2
    assert output.getvalue() == ""


def test_a_contradiction_is_logged_nowhere() -> None:
    made, trackers, _ = recorder(row(attempt=1))
    with pytest.raises(DivergenceError):
        made.record(row(attempt=2, fingerprint={**BITS, "rollouts": "x"}))
    assert [tracker.rows for tracker in trackers] == [[], []]


def test_a_contradiction_may_be_a_warning_and_then_the_new_row_counts() -> None:
    made, trackers, output = recorder(row(attempt=1), on_divergence="warn")
    new = row(attempt=2, fingerprint={**BITS, "rollouts": "x"})
    made.record(new)
    assert trackers[0].rows == [new]
    assert output.getvalue().startswith("warning: step 5 differs from what attempt 1 did: first in rollouts")


@pytest.mark.parametrize(
    ("recorded", "num_reused", "shown"),
    [
        ([row()], 16, "step 5: 16 rollouts from the journal, came out as in attempt 1, bit for bit\n"),
        ([], 6, "step 5: 6 rollouts from the journal\n"),
        ([], 0, ""),
    ],
)
def test_what_was_reused_and_came_out_the_same_is_shown(
    recorded: list[StepRow], num_reused: int, shown: str
) -> None:
    made, trackers, output = recorder(*recorded)
    new = row(attempt=2, num_reused=num_reused)
    made.record(new)
    assert output.getvalue() == shown
    assert trackers[0].rows == [new]


def test_a_replay_keeps_the_row_that_was_written_when_the_step_was_trained() -> None:
    old, new = row(attempt=1, num_reused=0), row(attempt=2, num_reused=16)
    made, trackers, _ = recorder(old, replay_only=True)
    made.record(new)
    made.record(row(6, attempt=2))
    assert trackers[0].rows == [old, row(6, attempt=2)]
    assert made.recorded(5, "h") == old
