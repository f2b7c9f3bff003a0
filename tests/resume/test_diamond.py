"""The diamond: N steps unbroken equals k steps, SIGKILL at a random instant of a later step, resume, to N."""

import random
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

STEPS = 6
GRPO = ["algorithm.name=grpo"]
VARIANTS = {
    "ppo": [],
    "ppo-everything": EVERYTHING,
    "ppo-kl-in-reward": ["kl.coef=0.05", "kl.use=reward", "kl.estimator=k1", "kl.controller=adaptive"],
    "ppo-critic-warm-up": ["train.freeze_policy_steps=4", "critic.num_mini_batches=12"],
    "ppo-dropout": ["policy.dropout=0.2", "critic.dropout=0.2"],
    "ppo-bfloat16": ["train.precision=bfloat16"],
    "grpo": GRPO,
    "grpo-adaptive-kl": [*GRPO, "kl.coef=0.05", "kl.controller=adaptive", "kl.target=0.001", "kl.horizon=50"],
    "grpo-reference-per-epoch": [
        *GRPO,
        "kl.coef=0.05",
        "kl.refresh_reference_every_epoch=true",
        "data.tasks_per_epoch=6",
    ],
    "epoch-ends-with-a-checkpoint": [
        "data.tasks_per_epoch=8",
        "kl.coef=0.05",
        "kl.refresh_reference_every_epoch=true",
    ],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_and_resumed_is_unbroken(variant: str, runs: Path, rng: random.Random) -> None:
    config = make_config(*VARIANTS[variant])
    run_to_end(runs / "unbroken", config)

    run_and_kill(runs / "killed", config, after_step=rng.randrange(2, STEPS - 1), rng=rng)
    log = run_to_end(runs / "killed", config)

    assert "grade exact" in log or "starting at step 0" in log, "the kill may have hit the first save"
    assert_same_run(runs / "killed", runs / "unbroken", STEPS)
    rewards = [row["reward"] for row in trajectory(runs / "unbroken")]
    assert 0 < sum(rewards) < STEPS, "without both rewards nothing is learned and nothing is proved"


def test_two_kills_in_a_row(runs: Path, rng: random.Random) -> None:
    config = make_config(*EVERYTHING)
    run_to_end(runs / "unbroken", config)

    run_and_kill(runs / "killed", config, after_step=2, rng=rng)
    run_and_kill(runs / "killed", config, after_step=4, rng=rng)
    run_to_end(runs / "killed", config)

    assert_same_run(runs / "killed", runs / "unbroken", STEPS)


def test_killed_before_the_first_checkpoint(runs: Path) -> None:
    config = make_config(*EVERYTHING, "checkpoint.every_steps=4")
    run_to_end(runs / "unbroken", config)

    process = start(runs / "killed", config)
    wait_for_step(runs / "killed", process, 2)
    kill(process)
    assert checkpoint_steps(runs / "killed") == []
    log = run_to_end(runs / "killed", config)

    assert "step 1: 16 rollouts from the journal, came out as in attempt 1, bit for bit" in log
    assert_same_run(runs / "killed", runs / "unbroken", STEPS)


def test_killed_before_the_first_step(runs: Path) -> None:
    config = make_config()
    run_to_end(runs / "unbroken", config)

    process = start(runs / "killed", config)
    while not (runs / "killed" / "attempts.jsonl").exists():
        assert process.is_alive()
    kill(process)
    run_to_end(runs / "killed", config)

    assert_same_run(runs / "killed", runs / "unbroken", STEPS)


def test_a_finished_run_says_so_and_more_steps_continue_it(runs: Path) -> None:
    run_to_end(runs / "unbroken", make_config(*EVERYTHING))

    run_to_end(runs / "continued", make_config(*EVERYTHING, "train.steps=3"))
    assert "already finished" in run_to_end(runs / "continued", make_config(*EVERYTHING, "train.steps=3"))
    run_to_end(runs / "continued", make_config(*EVERYTHING))

    assert_same_run(runs / "continued", runs / "unbroken", STEPS)


def test_another_checkpoint_interval_changes_nothing(runs: Path) -> None:
    run_to_end(runs / "often", make_config(*EVERYTHING, "checkpoint.every_steps=1", "checkpoint.keep_last=1"))
    run_to_end(runs / "rarely", make_config(*EVERYTHING, "checkpoint.every_steps=0"))

    assert checkpoint_steps(runs / "often") == [STEPS]
    assert_same_run(runs / "often", runs / "rarely", STEPS)
