"""A step that was trained before must come out the same; if not, it is said where, and nothing is saved."""

import json
from pathlib import Path

import pytest
import torch

from tests.support.attempts import STEPS, config_of, shown_by, train_here
from tests.support.harness import assert_same_run, checkpoint_steps
from tests.support.metrics import read_metrics
from yaoki.errors import DivergenceError
from yaoki.runs.directory import RunDirectory


@pytest.fixture
def tampered(unfinished: Path) -> Path:
    """The row of step 3, after the last checkpoint, claims other moments of the critic."""
    lines = (unfinished / "metrics.jsonl").read_text().splitlines()
    row = json.loads(lines[-1])
    row["fingerprint"]["critic.optim"] = "0" * 32
    (unfinished / "metrics.jsonl").write_text("".join(f"{line}\n" for line in [*lines[:-1], json.dumps(row)]))
    return unfinished


def test_the_same_bits_are_noted(unfinished: Path, finished: Path) -> None:
    shown = shown_by(unfinished, config_of())

    assert "step 3: 16 rollouts from the journal, came out as in attempt 1, bit for bit" in shown
    assert_same_run(unfinished, finished, STEPS)


def test_other_bits_stop_the_run(tampered: Path) -> None:
    with pytest.raises(DivergenceError, match=r"step 3 .* attempt 1 did: first in critic\.optim") as caught:
        train_here(tampered, config_of())

    assert "0" * 32 in caught.value.message
    assert "resume.on_divergence" in str(caught.value.hint)
    assert checkpoint_steps(tampered) == [2]
    assert RunDirectory(tampered).summary() is None
    assert RunDirectory(tampered).attempts()[-1].outcome == "failed"
    (superseded,) = (tampered / "attempts").glob("*/superseded.jsonl")
    assert json.loads(superseded.read_text())["step"] == 3


def test_trying_again_does_not_make_it_right(tampered: Path) -> None:
    for _ in range(2):
        with pytest.raises(DivergenceError, match="attempt 1 did"):
            train_here(tampered, config_of())


def test_other_bits_can_be_waved_through(tampered: Path, finished: Path) -> None:
    shown = shown_by(tampered, config_of("resume.on_divergence=warn"))

    assert "warning: step 3 differs from what attempt 1 did: first in critic.optim" in shown
    assert_same_run(tampered, finished, STEPS)


def test_a_step_of_another_environment_is_not_compared(tampered: Path, finished: Path) -> None:
    """Rows that were written with other rounding (another thread count, say) cannot agree bit for bit."""
    lines = (tampered / "metrics.jsonl").read_text().splitlines()
    row = json.loads(lines[-1]) | {"history": "of another thread count"}
    (tampered / "metrics.jsonl").write_text("".join(f"{line}\n" for line in [*lines[:-1], json.dumps(row)]))

    shown = shown_by(tampered, config_of())

    assert "came out as" not in shown
    assert_same_run(tampered, finished, STEPS)


def test_another_thread_count_is_elastic_and_changes_the_history(unfinished: Path, finished: Path) -> None:
    shown = shown_by(unfinished, config_of("run.num_threads=2"))
    torch.set_num_threads(1)

    assert "grade elastic" in shown
    assert "num_threads was 1, is 2" in shown
    histories = [
        [row["history"] for row in read_metrics(p / "metrics.jsonl")] for p in (unfinished, finished)
    ]
    assert histories[0][:2] == histories[1][:2]
    assert histories[0][2] != histories[1][2]
