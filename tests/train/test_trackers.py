"""Trackers receive every row, on rank 0 alone; one that only informs never ends a run."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.attempts import STEPS, config_of, train_here
from tests.support.metrics import read_metrics, step_row
from tests.support.ranks import on_ranks
from yaoki.errors import StopRequested
from yaoki.journal.step_row import StepRow
from yaoki.ranks.world import World
from yaoki.runs.directory import RunDirectory
from yaoki.train import attempt
from yaoki.train.console import Console
from yaoki.train.session import train
from yaoki.train.trackers import TensorBoard, Tracker

Calls = list[tuple[str, object]]


class Recording:
    """A tracker of one's own."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        calls.append(("made", None))

    def resume_from(self, step: int) -> None:
        self._calls.append(("resume_from", step))

    def log(self, row: StepRow) -> None:
        self._calls.append(("log", row.to_json()))

    def close(self) -> None:
        self._calls.append(("close", None))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What a tracker in the place of TensorBoard is asked to do, in this process and those forked from it."""
    made: Calls = []

    def recording(directory: Path, warn: Callable[[str], None]) -> Tracker:
        return Recording(made)

    monkeypatch.setattr(attempt, "TensorBoard", recording)
    return made


def expected_calls(run: Path, first: int) -> Calls:
    rows = [("log", row) for row in read_metrics(run / "metrics.jsonl")[first - 1 :]]
    return [("made", None), ("resume_from", first), *rows, ("close", None)]


def test_a_tracker_receives_the_rows_of_the_record(calls: Calls, tmp_path: Path) -> None:
    train_here(tmp_path, config_of())
    assert [name for name, _ in calls].count("log") == STEPS
    assert calls == expected_calls(tmp_path, 1)


def test_a_tracker_is_told_from_where_a_resume_goes_on(calls: Calls, unfinished: Path) -> None:
    train_here(unfinished, config_of())
    assert calls == expected_calls(unfinished, STEPS)


def test_a_tracker_is_closed_when_the_attempt_does_not_end_well(calls: Calls, tmp_path: Path) -> None:
    with pytest.raises(StopRequested):
        train_here(tmp_path, config_of("run.max_seconds=0.001"))
    assert calls == [("made", None), ("resume_from", 1), ("close", None)]


def test_other_ranks_have_no_tracker(calls: Calls, tmp_path: Path) -> None:
    config = config_of("train.steps=2", "algorithm.name=grpo", "eval.every_steps=0")

    def work(world: World) -> Calls:
        with Console(0, is_quiet=True) as console:
            train(RunDirectory(tmp_path / "run"), config, console, world)
        return calls

    first, second = on_ranks(2, tmp_path, work)
    assert first == expected_calls(tmp_path / "run", 1)
    assert second == []


def test_a_full_disk_ends_tensorboard_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    board = TensorBoard(tmp_path, warnings.append)
    board.resume_from(1)
    board.log(step_row(1))

    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(board._writer, "flush", no_room)
    for step in (2, 3):
        board.log(step_row(step))
    assert warnings == ["nothing more is written for TensorBoard: [Errno 28] No space left on device"]
    board.close()


def test_tensorboard_that_was_never_resumed_can_be_closed(tmp_path: Path) -> None:
    """As when an attempt fails to restore its state."""
    board = TensorBoard(tmp_path / "tensorboard", print)
    board.log(step_row(1))
    board.close()
    assert not (tmp_path / "tensorboard").exists()
