"""The rows of a run and its TensorBoard events: what is reported, finite, and there once."""

import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support.attempts import STEPS, config_of, die_while_generating, train_here
from tests.support.metrics import read_metrics

PER_STEP = {
    "reward",
    "pass_at_n",
    "length",
    "length_correct",
    "length_incorrect",
    "truncated",
    "has_format",
    "repetition",
    "reflection_words",
    "verifier_timeouts",
    "verifier_errors",
    "logprob_gap_mean",
    "logprob_gap_max",
    "kl_to_ref",
    "skipped_steps",
    "kl_coef",
    "policy_version",
    "epoch",
}
OF_THE_POLICY = {
    f"policy_{name}" for name in ("loss", "entropy", "approx_kl", "clip_fraction", "grad_norm", "lr")
}
OF_THE_CRITIC = {"critic_loss", "critic_grad_norm", "critic_lr", "explained_variance", "value"}
TIMES = {
    *(f"{name}_s" for name in ("evaluate", "generate", "journal", "score", "update", "sync", "fingerprint")),
    "num_reused_rollouts",
    *("step_s", "checkpoint_s", "train_s", "tokens_per_s", "rollout_tokens_per_s"),
}


def rows_of(path: Path) -> list[dict[str, Any]]:
    return read_metrics(path / "metrics.jsonl")


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_every_field_is_there_and_finite(algorithm: str, finished: Path, tmp_path: Path) -> None:
    path, expected = finished, PER_STEP | OF_THE_POLICY | OF_THE_CRITIC
    if algorithm == "grpo":
        path, expected = tmp_path / "run", PER_STEP | OF_THE_POLICY
        train_here(path, config_of("algorithm.name=grpo", "train.steps=1"))

    for number, row in enumerate(rows_of(path), start=1):
        assert row["step"] == number
        assert row["attempt"] == 1
        assert expected <= row.keys()
        assert all(math.isfinite(row[name]) for name in expected)
        assert row["logprob_gap_max"] < 1e-4
        assert row["timing"].keys() == TIMES
        assert all(math.isfinite(value) and value >= 0 for value in row["timing"].values())
        assert (row["accuracy"] is not None) == (number % 2 == 1), "evaluated before steps 1 and 3"
        assert "rollouts" in row["fingerprint"]
    assert len(rows_of(path)) == (STEPS if path == finished else 1)


def test_the_numbers_of_a_row_agree(finished: Path) -> None:
    rewards = [row["reward"] for row in rows_of(finished)]
    assert min(rewards) > 0
    assert max(rewards) < 1, "both rewards, or nothing is learned"
    for row in rows_of(finished):
        num_correct = row["reward"] * 16
        num_tokens = row["length_correct"] * num_correct + row["length_incorrect"] * (16 - num_correct)
        assert num_tokens == pytest.approx(row["length"] * 16)
        assert row["reward"] <= row["pass_at_n"] <= 1
        assert row["reward"] <= 1 - row["truncated"]
        assert row["timing"]["tokens_per_s"] == pytest.approx(num_tokens / row["timing"]["step_s"], rel=0.01)
    assert [row["policy_version"] for row in rows_of(finished)] == [0, 1, 2]


def test_a_frozen_policy_stands_still_while_the_critic_learns(tmp_path: Path) -> None:
    path = tmp_path / "run"
    train_here(path, config_of("train.freeze_policy_steps=2"))

    first, second, third = rows_of(path)
    for row in (first, second):
        assert not any(name in row for name in OF_THE_POLICY)
        assert row.keys() >= OF_THE_CRITIC
    assert third.keys() >= OF_THE_POLICY
    policy = [row["fingerprint"]["policy.params"] for row in (first, second, third)]
    critic = [row["fingerprint"]["critic.params"] for row in (first, second, third)]
    assert policy[0] == policy[1] != policy[2]
    assert len(set(critic)) == 3
    assert [row["policy_version"] for row in (first, second, third)] == [0, 0, 0]


def points(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag -> (step, value) of every scalar, as TensorBoard shows them."""
    events = EventAccumulator(str(path / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_shows_each_step_once_after_a_kill(tmp_path: Path) -> None:
    """Killed in step 5 with a checkpoint of step 2: steps 3 and 4 are done twice."""
    path, config = tmp_path / "run", config_of("train.steps=5", "checkpoint.every_steps=0")
    train_here(path, config_of("train.steps=2"))
    assert die_while_generating(path, config, signal.SIGKILL, step=3) == -signal.SIGKILL
    assert len(rows_of(path)) == 4
    train_here(path, config)

    shown, rows = points(path), rows_of(path)
    assert shown.keys() >= {"reward", "length", "policy_entropy", "critic_grad_norm", "timing/step_s"}
    for tag in ("reward", "policy_entropy", "timing/train_s"):
        values = [row["timing"]["train_s"] if tag.startswith("timing") else row[tag] for row in rows]
        assert [step for step, _ in shown[tag]] == [1, 2, 3, 4, 5]
        assert [value for _, value in shown[tag]] == pytest.approx(values)
    for tag, series in shown.items():
        steps = [step for step, _ in series]
        assert steps == sorted(set(steps)), tag


def test_points_of_saved_steps_survive_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "run"
    assert die_while_generating(path, config_of(), signal.SIGKILL, step=3) == -signal.SIGKILL
    assert [step for step, _ in points(path)["reward"]] == [1, 2]


def test_metrics_rows_are_plain_json(finished: Path) -> None:
    for line in (finished / "metrics.jsonl").open():
        assert json.loads(line, parse_constant=lambda word: pytest.fail(word))
