"""Two processes never train one run; a dead one leaves no lock behind."""

import multiprocessing
import signal
from multiprocessing.connection import wait
from pathlib import Path

import pytest

from tests.support.attempts import config_of, die_while_generating, train_here
from tests.support.harness import finish, kill, start, wait_for_step
from yaoki.checkpoint.catalog import Choice
from yaoki.cli.reports import describe_status
from yaoki.commands.status import run_status
from yaoki.errors import RefusedError
from yaoki.runs.directory import RunDirectory
from yaoki.train import session
from yaoki.train.attempt import Context, Outcome


def test_a_second_process_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    path, config = tmp_path / "run", config_of("train.steps=1000")
    holder = start(path, config)
    try:
        wait_for_step(path, holder, 1)

        with pytest.raises(RefusedError, match=f"in use by process {holder.pid}") as caught:
            train_here(path, config)
        assert caught.value.exit_code == 3
        assert caught.value.hint
        status = run_status(RunDirectory(path))
        assert status.in_use_by == f"process {holder.pid}"
        assert [attempt.outcome for attempt in status.attempts] == ["running"]
        assert "1  running" in describe_status(status)
    finally:
        kill(holder)

    assert RunDirectory(path).lock_holder() is None
    assert [attempt.outcome for attempt in run_status(RunDirectory(path)).attempts] == ["killed"]
    with RunDirectory(path).lock():
        pass


def test_of_two_that_start_at_the_same_instant_one_trains(tmp_path: Path) -> None:
    """On a directory that is not there yet. The one that trains waits for the other's end."""
    path, config = tmp_path / "run", config_of("train.steps=1")
    context = multiprocessing.get_context("fork")
    at_once, other_has_ended = context.Barrier(2), context.Event()
    attempt = session.attempt

    def attempt_alone(context: Context, choice: Choice) -> Outcome:
        assert other_has_ended.wait(120)
        return attempt(context, choice)

    def before() -> None:
        session.attempt = attempt_alone
        at_once.wait(60)

    both = [start(path, config, before), start(path, config, before)]
    (ended,) = wait([process.sentinel for process in both], 120)
    (refused,) = [process for process in both if process.sentinel == ended]
    refused.join()
    assert refused.exitcode == 3
    other_has_ended.set()
    for process in both:
        process.join(120)
    assert sorted(process.exitcode or 0 for process in both) == [0, 3]
    (record,) = RunDirectory(path).attempts()
    assert record.outcome == "finished"
    assert record.pid != refused.pid


def test_looking_at_a_run_does_not_take_its_lock(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    assert directory.lock_holder() is None
    with directory.lock():
        assert directory.lock_holder() is not None
        assert directory.lock_holder() is not None
    assert directory.lock_holder() is None


def test_a_file_in_the_place_of_the_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(RefusedError, match="cannot be a run directory") as caught:
            train_here(path, config_of())
        assert "--run" in str(caught.value.hint)


def test_a_killed_attempt_is_known_as_killed(tmp_path: Path) -> None:
    path = tmp_path / "run"
    assert die_while_generating(path, config_of(), signal.SIGKILL, step=1) == -signal.SIGKILL
    assert [attempt.outcome for attempt in RunDirectory(path).attempts()] == ["killed"]
    assert run_status(RunDirectory(path)).resume.grade == "fresh"


def test_a_failed_attempt_frees_the_lock_and_says_why(tmp_path: Path) -> None:
    path = tmp_path / "run"
    ended = finish(start(path, config_of("data.verifier=nowhere:Nothing")), path)
    assert ended.exit_code == 2
    (attempt,) = RunDirectory(path).attempts()
    assert attempt.outcome == "failed"
    assert "nowhere" in str(attempt.reason)
    assert RunDirectory(path).lock_holder() is None
