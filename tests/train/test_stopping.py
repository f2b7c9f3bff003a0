"""Being asked to stop: the last boundary is saved, exit code 75, and the resumed run is the unbroken one."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.attempts import BATCHES_PER_STEP, STEPS, config_of, train_and_signal, train_here
from tests.support.harness import assert_same_run, checkpoint_steps, finish, run, run_to_end, start
from tests.support.metrics import read_metrics
from yaoki.commands.status import run_status
from yaoki.errors import RefusedError, StopRequested
from yaoki.learner.learner import Learner
from yaoki.ranks.world import alone
from yaoki.rewards.pool import VerifierPool
from yaoki.runs.directory import RunDirectory
from yaoki.train.stop import StopSignal
from yaoki.train.trainer import Trainer

SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]


@pytest.mark.parametrize(("number", "step"), list(zip(SIGNALS, [1, 2, 3], strict=True)))
def test_a_stop_while_generating_changes_nothing(
    number: signal.Signals, step: int, tmp_path: Path, finished: Path
) -> None:
    path = tmp_path / "run"
    with pytest.raises(StopRequested, match=number.name):
        train_and_signal(path, config_of(), number, step)

    status = run_status(RunDirectory(path))
    assert [a.outcome for a in status.attempts] == ["stopped"]
    assert number.name in (status.attempts[0].reason or "")
    assert checkpoint_steps(path)[-1] == step - 1
    assert status.resume.step == step - 1

    train_here(path, config_of())
    assert_same_run(path, finished, STEPS)


def signal_at_call(owner: type, method: str, number: int) -> Callable[[], None]:
    """SIGTERM to the own process at the beginning of a call."""

    def patch() -> None:
        original, num_calls = getattr(owner, method), 0

        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal num_calls
            num_calls += 1
            if num_calls == number:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(*arguments, **named)

        setattr(owner, method, call)

    return patch


PHASES = {
    "evaluate": (signal_at_call(Trainer, "evaluate", 2), 2, []),
    "verify": (signal_at_call(VerifierPool, "verify", 6), 1, [6]),
    "score": (signal_at_call(Learner, "score", 2), 1, [16]),
    "update the critic": (signal_at_call(Learner, "_critic_step", 5), None, [16, 16]),
    "update the policy": (signal_at_call(Learner, "_policy_step", 2), None, [16, 16]),
}
"""When the signal comes; the step that is saved then (during an update none is); and the rollouts that the
next attempt finds in the journal, by step from there on."""


@pytest.mark.parametrize("phase", PHASES)
def test_a_stop_in_any_phase_loses_nothing(phase: str, tmp_path: Path, finished: Path) -> None:
    path, (patch, saved, reused) = tmp_path / "run", PHASES[phase]
    ended = run(path, config_of("checkpoint.every_steps=0"), patch)
    assert ended.exit_code == 75, ended.log
    assert "stopped: SIGTERM received" in ended.log
    assert checkpoint_steps(path) == ([] if saved is None else [saved])

    run_to_end(path, config_of("checkpoint.every_steps=0"))

    rows = read_metrics(path / "metrics.jsonl")[saved or 0 :]
    found = [row["timing"]["num_reused_rollouts"] for row in rows]
    assert found == reused + [0] * (len(found) - len(reused))
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
        with StopSignal(0, alone()):
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
            os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=ignore_the_first)
    process.start()
    process.join(60)
    assert process.exitcode == 128 + signal.SIGINT


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_a_request(number: signal.Signals) -> None:
    with StopSignal(0, alone()) as stop:
        stop.poll()
        assert stop.reason is None
        os.kill(os.getpid(), number)
        assert stop.reason == f"{number.name} received"
        with pytest.raises(StopRequested, match=number.name):
            stop.poll()


def test_signals_are_given_back() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with StopSignal(0, alone()):
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_there_is_no_budget_unless_asked_for() -> None:
    assert StopSignal(0, alone()).reason is None
    assert StopSignal(1e6, alone()).reason is None
    assert StopSignal(1e-9, alone()).reason is None
    stop = StopSignal(1e-9, alone())
    stop.made_progress()
    assert "1e-09" in str(stop.reason)


def test_the_budget_leaves_time_to_save() -> None:
    """By the longest save so far, but never more than half of it."""
    stop = StopSignal(1e6, alone())
    stop.saved(999_999)
    assert stop.reason is None
    stop = StopSignal(100, alone())
    stop.saved(20)
    stop.saved(30)
    assert stop.reason is None
    stop.made_progress()
    assert stop.reason is None
    stop._started_s -= 71
    assert stop.reason == "30 s of the time budget of 100 s are left"


def test_a_budget_shorter_than_a_step_gets_on(tmp_path: Path, finished: Path) -> None:
    """Shorter even than building the models: each attempt does something that lasts before it leaves."""
    path = tmp_path / "run"

    for _ in range(STEPS * (BATCHES_PER_STEP + 1) + 3):
        ended = run(path, config_of("run.max_seconds=0.3", "checkpoint.every_steps=0"))
        if ended.exit_code == 0:
            break
        assert ended.exit_code == 75, ended.log
    assert ended.exit_code == 0, ended.log
    assert_same_run(path, finished, STEPS)


def test_a_full_disk_stops_the_run(tmp_path: Path, finished: Path) -> None:
    """Before it begins: refused. Once it goes on: the boundary is saved."""
    path = tmp_path / "run"
    with pytest.raises(RefusedError, match=r"are free .*, run\.min_free_gb is 1e\+09"):
        train_here(path, config_of("run.min_free_gb=1e9"))
    answers = iter([None, None])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("yaoki.train.attempt.space_shortage", lambda *_: next(answers, "nothing is free"))
        with pytest.raises(StopRequested, match="nothing is free"):
            train_here(path, config_of())
    assert checkpoint_steps(path) == [2]
    train_here(path, config_of())
    assert_same_run(path, finished, STEPS)
