"""What is tried again, and what ends a run on a cluster."""

import pytest

from yaoki.launch.coordinator import MAX_IDLE_GROUPS, Coordinator, Ending
from yaoki.launch.process import LogTail, error_tail

KILLED = Ending(1, -9, "")
LOST = Ending(0, 6, "error: another worker of this run is gone")
FINISHED = Ending(0, 0, "")
STOPPED = Ending(0, 75, "")
REFUSED = Ending(0, 3, "error: this run cannot go on with a changed config")
UNFORESEEN = Ending(1, 1, "Traceback (most recent call last):\nZeroDivisionError: on purpose")


@pytest.mark.parametrize("ending", [KILLED, LOST, UNFORESEEN])
def test_what_may_not_happen_again_is_tried_again(ending: Ending) -> None:
    coordinator = Coordinator()
    assert not coordinator.begin(2, 0)
    assert coordinator.ended(ending)
    assert coordinator.begin(1, 0)
    assert coordinator.commands() == (False, False)
    assert coordinator.ending() is None
    assert coordinator.messages(1) == ["starting again with 1 worker"]


@pytest.mark.parametrize("code", [1, 2, 3, 4, 5])
def test_an_error_that_a_worker_can_name_is_the_end(code: int) -> None:
    coordinator = Coordinator()
    coordinator.begin(2, 0)
    failure = Ending(1, code, "error: on purpose")
    assert not coordinator.ended(failure)
    assert coordinator.commands() == (False, True)
    assert not coordinator.ended(LOST)
    assert not coordinator.ended(Ending(0, 2, "error: another one, later"))
    assert not coordinator.ended(FINISHED)
    assert coordinator.ending() == failure


def test_a_failure_counts_more_than_an_end_that_was_meant() -> None:
    coordinator = Coordinator()
    coordinator.begin(2, 0)
    assert not coordinator.ended(FINISHED)
    assert coordinator.commands() == (False, False)
    assert not coordinator.ended(REFUSED)
    assert coordinator.ending() == REFUSED


def test_groups_that_finish_no_step_are_the_end_of_it() -> None:
    coordinator = Coordinator()
    for _ in range(MAX_IDLE_GROUPS):
        coordinator.begin(2, 7)
        assert coordinator.ended(KILLED)
    coordinator.begin(2, 8)  # one step more
    for _ in range(MAX_IDLE_GROUPS):
        assert coordinator.ended(KILLED)
        coordinator.begin(2, 8)
    assert not coordinator.ended(KILLED)
    assert coordinator.ending() == KILLED


@pytest.mark.parametrize("ending", [KILLED, LOST, STOPPED, UNFORESEEN])
def test_a_worker_that_dies_while_stopping_has_stopped(ending: Ending) -> None:
    coordinator = Coordinator()
    assert not coordinator.ask_to_stop(), "no worker was started yet"
    coordinator.begin(2, 0)
    assert coordinator.ask_to_stop()
    assert coordinator.commands() == (True, False)
    assert not coordinator.ended(ending)
    found = coordinator.ending()
    assert found is not None
    assert found.code == 75


def test_an_error_while_stopping_is_an_error() -> None:
    coordinator = Coordinator()
    coordinator.begin(2, 0)
    coordinator.ask_to_stop()
    coordinator.ended(STOPPED)
    assert not coordinator.ended(REFUSED)
    assert coordinator.ending() == REFUSED


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("", ""),
        ("step 1\nstep 2\n", ""),
        ("step 1\nerror: no\n\nhint: yes\n", "error: no\n\nhint: yes"),
        ("error: no\n", "error: no"),
        ("Traceback (most\n  f()\nValueError: no\n", "Traceback (most\n  f()\nValueError: no"),
        ("[rank1]: Traceback (most\n[rank1]:   f()\n[rank1]: No: no\n", "Traceback (most\n  f()\nNo: no"),
        ("error: at first\nstep\nerror: at last\n", "error: at last"),
    ],
)
def test_the_error_at_the_end_of_a_log(said: str, error: str, tmp_path) -> None:
    log = tmp_path / "log"
    log.write_text("error: of another attempt\n")
    begin = log.stat().st_size
    log.write_text(log.read_text() + said)
    assert error_tail(log, begin) == error


def test_a_log_is_followed_line_by_line(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    tail = LogTail(log)
    for new, shown in [("", ""), ("one\ntw", "one\n"), ("o\n", "two\n"), ("\u516b\n", "\u516b\n")]:
        with log.open("a") as file:
            file.write(new)
        tail.print_new()
        assert capsys.readouterr().err == shown


def test_a_log_that_is_not_there_yet(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    tail = LogTail(tmp_path / "log")
    tail.print_new()
    (tmp_path / "log").write_text("one\n")
    tail.print_new()
    assert capsys.readouterr().err == "one\n"
