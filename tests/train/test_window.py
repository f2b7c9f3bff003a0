"""The frozen window as the trainer keeps it: nothing writes to the state while it may be saved."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.attempts import STEPS, config_of, train_here
from tests.support.harness import assert_same_run, checkpoint_steps, final_state
from tests.support.shared import UnbrokenRuns
from yaoki.checkpoint.io.frozen import FrozenTensors
from yaoki.checkpoint.verify import read_manifest
from yaoki.errors import YaokiError
from yaoki.train.trainer import Trainer

EVERY_STEP = ("checkpoint.every_steps=1", "eval.every_steps=1")


def test_a_trainer_that_writes_in_the_window_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An average of weights, say, that somebody updates where the held-out accuracy is measured."""
    measure, begin = Trainer._evaluate_if_due, FrozenTensors.begin
    writes_shard, saves = threading.Event(), []

    def begin_late(self: FrozenTensors, groups: Any, check: Any) -> None:
        saves.append(self)
        if len(saves) == 2:
            writes_shard.wait(60)
        begin(self, groups, check)

    def measure_and_write(self: Trainer, step: int) -> float | None:
        found = measure(self, step)
        if self.state.progress.global_step == 2:
            with torch.no_grad():
                next(self.state.learner.policy.model.parameters()).mul_(1.0)
            writes_shard.set()
        return found

    monkeypatch.setattr(FrozenTensors, "begin", begin_late)
    monkeypatch.setattr(Trainer, "_evaluate_if_due", measure_and_write)
    with pytest.raises(YaokiError, match="written to between two updates"):
        train_here(tmp_path / "run", config_of(*EVERY_STEP))
    assert 2 not in checkpoint_steps(tmp_path / "run")


def test_evaluation_weight_sync_and_a_new_reference_leave_the_window_alone(
    tmp_path: Path, finished: Path, unbroken_run: UnbrokenRuns
) -> None:
    """Saves of every step, with all of them going on beside: the same bits as saves of every other step."""
    often = unbroken_run(config_of("checkpoint.every_steps=1"))
    assert checkpoint_steps(often) == [1, 2, 3]
    assert final_state(often, 2) == final_state(finished, 2)
    assert_same_run(often, finished, STEPS)
    refreshed = [
        "kl.refresh_reference_every_epoch=true",
        "data.tasks_per_epoch=6",
        "checkpoint.every_steps=1",
    ]
    train_here(tmp_path / "refreshed", config_of(*refreshed))
    train_here(tmp_path / "rarely", config_of(*refreshed[:2], "checkpoint.every_steps=0"))
    assert final_state(tmp_path / "refreshed", STEPS) == final_state(tmp_path / "rarely", STEPS)


def test_a_reference_that_stays_is_a_link(finished: Path) -> None:
    """kl.measure gives the run a frozen reference; its second checkpoint points to the file of the first."""
    inodes = {}
    for step in (2, 3):
        path = finished / "checkpoints" / f"step-{step:08d}"
        for file in read_manifest(path).files:
            inodes.setdefault(file.name, []).append((path / file.name).stat().st_ino)
    shared = {name for name, (one, other) in inodes.items() if one == other}
    assert shared == {"reference.params-00000-of-00001.safetensors"}
