"""`yaoki train` as a user meets it: real processes, their exit codes and what they print."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from .commands import OVERRIDES, Done, Trained, run_process


def test_the_first_command_trains_and_says_what_next(trained: Trained) -> None:
    out = trained.done.out
    assert trained.done.code == 0, trained.done.err
    assert re.search(r"^run +runs/tiny: 2 steps in [0-9.]+ s of training, 1 attempt$", out, re.MULTILINE)
    assert re.search(r"^accuracy +[01]\.\d{3} before, [01]\.\d{3} after", out, re.MULTILINE)
    assert "yaoki train --run runs/tiny train.steps=4" in out
    assert "yaoki status runs/tiny" in out
    assert "tensorboard --logdir runs/tiny/tensorboard" in out
    assert "yaoki export runs/tiny --to runs/tiny/export" in out
    assert "yaoki eval runs/tiny" in out


def test_progress_goes_to_standard_error(trained: Trained) -> None:
    lines = trained.done.err.splitlines()
    assert any("run runs/tiny, attempt 1: starting at step 0" in line for line in lines)
    steps = [line.split()[0] for line in lines if re.match(r" +\d+  ", line)]
    assert steps == ["1", "2"]
    assert any("saved step-00000002" in line for line in lines)
    assert any("<think>" in line for line in lines), "sample completions"
    assert not any("<think>" in line for line in trained.done.out.splitlines())


def test_a_pipe_gets_no_escape_codes_and_no_noise(trained: Trained) -> None:
    assert "\x1b" not in trained.done.out + trained.done.err
    assert "Warning" not in trained.done.err
    assert "Traceback" not in trained.done.err


def test_the_numbers_that_it_prints_are_those_of_the_run(trained: Trained) -> None:
    summary = json.loads((trained.run / "summary.json").read_text())
    before, after = summary["accuracy_before"], summary["accuracy_after"]
    assert f"{before:.3f} before, {after:.3f} after" in trained.done.out
    rows = [json.loads(line) for line in (trained.run / "metrics.jsonl").open()]
    assert before == rows[0]["accuracy"]
    assert summary["num_rollouts"] == 32
    assert summary["num_tokens"] == sum(row["length"] for row in rows) * 16


@pytest.fixture(scope="module")
def continued(tmp_path_factory: pytest.TempPathFactory, trained: Trained) -> Trained:
    """The same run, where only its directory and another number of steps are named."""
    folder = tmp_path_factory.mktemp("continued")
    shutil.copytree(trained.run, folder / "runs" / "tiny")
    return Trained(folder, run_process("train", "--run", "runs/tiny", "train.steps=3", folder=folder))


def test_more_steps_continue_the_run(continued: Trained) -> None:
    assert continued.done.code == 0, continued.done.err
    assert "attempt 2: resuming from step-00000002, grade exact" in continued.done.err
    assert "3 steps in" in continued.done.out
    assert "2 attempts" in continued.done.out
    rows = [json.loads(line) for line in (continued.run / "metrics.jsonl").open()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert [row["attempt"] for row in rows] == [1, 1, 2]


def test_the_same_command_on_a_finished_run_says_so(
    yaoki: Callable[..., Done], copied: Path, trained: Trained
) -> None:
    done = yaoki("train", trained.recipe, *OVERRIDES, "--run", copied)
    assert done.code == 0
    assert f"{copied} is finished: 2 of 2 steps are done" in done.out
    assert f"yaoki train --run {copied} train.steps=4" in done.out
    assert len((copied / "attempts.jsonl").read_text().splitlines()) == 2
