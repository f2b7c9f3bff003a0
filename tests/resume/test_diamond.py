"""A run killed by SIGKILL at a random instant and resumed to step N has the bits of N steps unbroken."""

import random
import shutil
from pathlib import Path

import pytest

from tests.support.harness import (
    EVERYTHING,
    assert_same_run,
    checkpoint_steps,
    kill,
    make_config,
    run_and_kill,
    run_to_end,
    start,
    trajectory,
    wait_for_step,
)
from tests.support.shared import UnbrokenRuns

STEPS = 6
GRPO = ["algorithm.name=grpo"]
VARIANTS = {
    "ppo": [],
    "ppo-everything": EVERYTHING,
    "ppo-kl-in-reward": ["kl.coef=0.05", "kl.use=reward", "kl.estimator=k1", "kl.controller=adaptive"],
    "ppo-critic-warm-up": ["train.freeze_policy_steps=4", "critic.num_mini_batches=12"],
    "ppo-bfloat16": ["train.precision=bfloat16"],
    "grpo": GRPO,
    "grpo-everything": [*GRPO, *EVERYTHING],
    "epoch-ends-with-a-checkpoint": [
        "data.tasks_per_epoch=8",
        "kl.coef=0.05",
        "kl.refresh_reference_every_epoch=true",
    ],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_and_resumed_is_unbroken(
    variant: str, tmp_path: Path, unbroken_run: UnbrokenRuns, rng: random.Random
) -> None:
    config = make_config(*VARIANTS[variant])

    run_and_kill(tmp_path / "killed", config, after_step=rng.randrange(2, STEPS - 1), rng=rng)
    log = run_to_end(tmp_path / "killed", config)

    assert "grade exact" in log or "starting at step 0" in log, "the kill may have hit the first save"
    assert_same_run(tmp_path / "killed", unbroken_run(config), STEPS)
    rewards = [row["reward"] for row in trajectory(tmp_path / "killed")]
    assert 0 < sum(rewards) < STEPS, "without both rewards nothing is learned and nothing is proved"


def test_two_kills_in_a_row(tmp_path: Path, unbroken_run: UnbrokenRuns, rng: random.Random) -> None:
    config = make_config(*EVERYTHING)

    run_and_kill(tmp_path / "killed", config, after_step=2, rng=rng)
    run_and_kill(tmp_path / "killed", config, after_step=4, rng=rng)
    run_to_end(tmp_path / "killed", config)

    assert_same_run(tmp_path / "killed", unbroken_run(config), STEPS)


def test_killed_before_the_first_checkpoint(tmp_path: Path, unbroken_run: UnbrokenRuns) -> None:
    """The unbroken run saves more often, which changes nothing."""
    config = make_config(*EVERYTHING, "checkpoint.every_steps=4")

    process = start(tmp_path / "killed", config)
    wait_for_step(tmp_path / "killed", process, 2)
    kill(process)
    assert checkpoint_steps(tmp_path / "killed") == []
    log = run_to_end(tmp_path / "killed", config)

    assert "step 1: 16 rollouts from the journal, came out as in attempt 1, bit for bit" in log
    assert_same_run(tmp_path / "killed", unbroken_run(make_config(*EVERYTHING)), STEPS)


def test_killed_before_the_first_step(tmp_path: Path, unbroken_run: UnbrokenRuns) -> None:
    config = make_config()

    process = start(tmp_path / "killed", config)
    while not (tmp_path / "killed" / "attempts.jsonl").exists():
        assert process.is_alive()
    kill(process)
    run_to_end(tmp_path / "killed", config)

    assert_same_run(tmp_path / "killed", unbroken_run(config), STEPS)


def test_a_finished_run_says_so_and_more_steps_continue_it(
    tmp_path: Path, unbroken_run: UnbrokenRuns
) -> None:
    short, path = make_config(*EVERYTHING, "train.steps=3"), tmp_path / "continued"
    shutil.copytree(unbroken_run(short), path)

    assert "already finished" in run_to_end(path, short)
    run_to_end(path, make_config(*EVERYTHING))

    assert_same_run(path, unbroken_run(make_config(*EVERYTHING)), STEPS)


def test_another_checkpoint_interval_changes_nothing(tmp_path: Path, unbroken_run: UnbrokenRuns) -> None:
    """A run that saves every step, and keeps one checkpoint, is the one that saves every other step."""
    path = tmp_path / "often"
    run_to_end(path, make_config(*EVERYTHING, "checkpoint.every_steps=1", "checkpoint.keep_last=1"))

    assert checkpoint_steps(path) == [STEPS]
    assert_same_run(path, unbroken_run(make_config(*EVERYTHING)), STEPS)
