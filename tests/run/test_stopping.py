"""Being asked to stop: the last boundary is saved, exit code 75, and the resumed run is the unbroken one."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from tests.resume.harness import assert_same_run, checkpoint_steps, finish, start
from yaoki.errors import StopRequested
from yaoki.run.directory import RunDirectory
from yaoki.run.status import run_status
from yaoki.run.stop import StopSignal

from .attempts import STEPS, config_of, train_and_signal, train_here

SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]


@pytest.mark.parametrize(("number", "step"), list(zip(SIGNALS, [1, 2, 3], strict=True)))
def test_a_stop_while_generating_changes_nothing(
    number: signal.Signals, step: int, tmp_path: Path, finished: Path
) -> None:
    path = tmp_path / "run"
    with pytest.raises(StopRequested, match=number.name):
        train_and_signal(path, config_of(), number, step)

    status = run_status(RunDirectory(path))
    assert [a["outcome"] for a in status["attempts"]] == ["stopped"]
    assert number.name in status["attempts"][0]["reason"]
    assert checkpoint_steps(path)[-1] == step - 1
    assert status["resume"]["step"] == step - 1

    train_here(path, config_of())
    assert_same_run(path, finished, STEPS)


def test_a_long_generation_is_left_at_once(tmp_path: Path) -> None:
    """About a minute of sampling is ahead when the signal comes."""
    path = tmp_path / "run"
    long = config_of(
        "train.group_size=256", "engine.max_new_tokens=2000", "engine.stop=[]", "eval.every_steps=0"
    )
    process = start(path, long)
    while not (path / "tensorboard").exists():  # made right before training starts
        assert process.is_alive()
        time.sleep(0.01)
    time.sleep(0.5)
    asked_at = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    ended = finish(process, path)

    assert ended.exit_code == 75
    assert "stopped: SIGTERM received" in ended.log
    assert time.monotonic() - asked_at < 20
    assert checkpoint_steps(path) == [0]
    assert RunDirectory(path).lock_holder() is None


def test_the_time_budget_stops_the_run(tmp_path: Path, finished: Path) -> None:
    path = tmp_path / "run"
    with pytest.raises(StopRequested, match=r"time budget of 0\.001 s") as caught:
        train_here(path, config_of("run.max_seconds=0.001"))
    assert caught.value.exit_code == 75
    assert checkpoint_steps(path) == [0]

    train_here(path, config_of())
    assert_same_run(path, finished, STEPS)


def test_a_second_signal_leaves_at_once() -> None:
    def ignore_the_first() -> None:
        with StopSignal(0):
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
            os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=ignore_the_first)
    process.start()
    process.join(60)
    assert process.exitcode == 128 + signal.SIGINT


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_a_request(number: signal.Signals) -> None:
    with StopSignal(0) as stop:
        stop.poll()
        assert stop.reason is None
        os.kill(os.getpid(), number)
        assert stop.reason == f"{number.name} received"
        with pytest.raises(StopRequested, match=number.name):
            stop.poll()


def test_signals_are_given_back() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with StopSignal(0):
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_there_is_no_budget_unless_asked_for() -> None:
    assert StopSignal(0).reason is None
    assert StopSignal(1e6).reason is None
    assert "1e-09" in str(StopSignal(1e-9).reason)
