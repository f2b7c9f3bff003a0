"""`yaoki train --workers N`: one command, one display, one error, and nothing left behind."""

import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from yaoki.checkpoint.catalog import Catalog
from yaoki.cli.main import main
from yaoki.runs.directory import RunDirectory

from .commands import OVERRIDES, PATIENCE_S, assert_as_unbroken, outcomes, processes_of


@pytest.fixture
def words(recipe: Path, tmp_path: Path) -> list[str]:
    return ["yaoki", "train", str(recipe), *OVERRIDES, "--run", str(tmp_path / "run"), "--workers", "2"]


def test_a_killed_worker_ends_all_and_the_same_command_goes_on(
    start: Callable, words: list[str], run: Path, plans: Path, unbroken: Path
) -> None:
    (plans / "die-update-1").write_text("3")
    done = start(*words).done()
    assert done.code == 128 + signal.SIGKILL, done.said
    assert done.said.count("error:") == 1
    assert "error: worker 1 was killed by SIGKILL; the other workers were stopped" in done.said
    assert f"hint: its log is {run / 'logs' / 'worker-001.log'}" in done.said
    assert processes_of(run) == []
    assert outcomes(run) == ["failed"]  # so the first worker could still say

    done = start(*words).done()
    assert done.code == 0, done.said
    assert f"      {3}  " in done.said  # the line of a step, from the first worker
    assert done.said.count("saved step-00000004") == 1
    assert outcomes(run) == ["failed", "finished"]
    assert_as_unbroken(run, unbroken)


def test_all_are_asked_to_stop_and_the_same_command_goes_on(
    start: Callable, words: list[str], run: Path, plans: Path, unbroken: Path
) -> None:
    (plans / "hold-generate-1").write_text("2")
    command = start(*words)
    command.wait_until((plans / "held").exists)
    log = run / "logs" / "worker-001.log"
    log.write_text("what it has said")
    refused = start(*words).done()
    assert refused.code == 3, refused.said
    assert "is in use by process" in refused.said
    assert log.read_text() == "what it has said", "another command must not touch it"
    command.send(signal.SIGTERM)
    done = command.done()
    assert done.code == 75, done.said
    assert done.said.count("stopped: SIGTERM received") == 1
    assert "error" not in done.said
    assert outcomes(run) == ["stopped"]

    done = start(*words).done()
    assert done.code == 0, done.said
    assert f"yaoki train --run {run} --workers 2 train.steps=" in done.said
    assert_as_unbroken(run, unbroken)


def test_workers_save_and_leave_when_their_launcher_is_killed(
    start: Callable, words: list[str], run: Path, plans: Path
) -> None:
    (plans / "hold-generate-0").write_text("2")
    command = start(*words, "checkpoint.every_steps=0")
    command.wait_until((plans / "held").exists)
    command.send(signal.SIGKILL)
    assert command.done().code == -signal.SIGKILL
    end = time.monotonic() + PATIENCE_S
    while processes_of(run) and time.monotonic() < end:
        time.sleep(0.02)
    assert processes_of(run) == []
    assert RunDirectory(run).lock_holder() is None
    assert outcomes(run) == ["stopped"]
    saved = Catalog(run / "checkpoints").choose().checkpoint
    assert saved is not None
    assert saved.manifest.step == 1


def test_an_exception_is_shown_once(start: Callable, words: list[str], run: Path, plans: Path) -> None:
    (plans / "fail-generate-1").write_text("1")
    done = start(*words).done()
    assert done.code == 1, done.said
    assert done.said.count("ZeroDivisionError: on purpose") == 1
    assert done.said.count("Traceback") == 1
    assert "error: worker 1 failed with exit code 1; the other workers were stopped" in done.said
    assert processes_of(run) == []


def test_a_worker_that_hangs_is_named(start: Callable, words: list[str], run: Path, plans: Path) -> None:
    (plans / "hold-generate-1").write_text("2")  # for ever
    done = start(*words, "run.peer_timeout_s=4").done()
    assert done.code == 6, done.said
    assert "error: worker 1 did not respond for run.peer_timeout_s; all workers were stopped" in done.said
    assert done.said.count("error:") == 1, done.said
    assert processes_of(run) == []


@pytest.mark.parametrize(
    ("settings", "code", "message"),
    [
        (["policy.init_from=/nowhere"], 5, "no usable model"),  # only the first worker looks for it
        (["engine.type=vllm", "engine.tensor_parallel=3"], 2, "does not divide"),  # all of them meet it
    ],
)
def test_an_error_is_shown_once_whoever_meets_it(
    start: Callable, words: list[str], run: Path, settings: list[str], code: int, message: str
) -> None:
    done = start(*words, *settings).done()
    assert done.code == code, done.said
    assert done.said.count(message) == 1, done.said
    assert processes_of(run) == []


def test_a_signal_before_training_is_no_failure(start: Callable, words: list[str], run: Path) -> None:
    """Nobody listens yet, and there is nothing to save."""
    command = start(*words)
    command.wait_until(lambda: len(processes_of(run)) == 3)
    command.send(signal.SIGTERM)
    done = command.done()
    assert done.code == 75, done.said
    assert "error" not in done.said
    assert processes_of(run) == []


@pytest.mark.parametrize("ray", [[], ["--ray"]])
@pytest.mark.parametrize("number", ["0", "-1", "two", "1.5", "2:1", "0:2", "1:2:3", ":", ""])
def test_a_number_of_workers_is_a_number(
    number: str,
    ray: list[str],
    recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["yaoki", "train", str(recipe), *OVERRIDES, f"--workers={number}", *ray])
    with pytest.raises(SystemExit) as leaving:
        main()
    assert leaving.value.code == 2
    assert f"error: --workers is {number!r}" in capfd.readouterr().err


def test_a_range_of_workers_needs_ray(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["yaoki", "train", str(recipe), *OVERRIDES, "--workers=1:2"])
    with pytest.raises(SystemExit) as leaving:
        main()
    assert leaving.value.code == 2
    error = capfd.readouterr().err
    assert "error: --workers is '1:2': a range, which only Ray can use" in error
    assert "hint: give a number such as 4, or with --ray a range: 2:8" in error


def test_a_second_signal_is_told_as_one(start: Callable, words: list[str], run: Path, plans: Path) -> None:
    (plans / "hold-generate-1").write_text("2")
    command = start(*words)
    command.wait_until((plans / "held").exists)
    for _ in range(2):
        command.send(signal.SIGINT)
        time.sleep(1.0)
    done = command.done()
    assert done.code == 128 + signal.SIGINT, done.said
    assert "SIGINT received twice: the workers exited without saving" in done.said
    assert "failed" not in done.said
    assert processes_of(run) == []
