"""Recovery from the journal: nothing is sampled twice, and the bits are those of the unbroken run."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.harness import EVERYTHING, assert_same_run, die, make_config, run, run_to_end
from tests.support.metrics import read_metrics
from tests.support.shared import UnbrokenRuns
from yaoki.journal.journal import RolloutJournal
from yaoki.journal.metrics import MetricsLog
from yaoki.learner.learner import Learner

STEPS, BATCH = 4, 16
"""Each step has 16 rollouts in micro-batches of 6, 6 and 4."""
NO_CHECKPOINTS = "checkpoint.every_steps=0"
Patch = Callable[[], None]


def config_of(*overrides: str) -> Any:
    return make_config(f"train.steps={STEPS}", *overrides)


@pytest.fixture
def unbroken(unbroken_run: UnbrokenRuns) -> Path:
    return unbroken_run(config_of())


def die_while_generating(step: int, after: int) -> Patch:
    """Once so many micro-batches of a step are durable."""

    def patch() -> None:
        append, num_appended = RolloutJournal.append, 0

        def append_and_die(self: RolloutJournal, rollouts: Any) -> None:
            nonlocal num_appended
            append(self, rollouts)
            num_appended += rollouts[0].key.step == step
            if num_appended == after:
                self.sync()
                die()

        RolloutJournal.append = append_and_die  # type: ignore[method-assign]

    return patch


def die_at_call(owner: type, method: str, number: int) -> Patch:
    """At the beginning of so-manieth call."""

    def patch() -> None:
        original, num_calls = getattr(owner, method), 0

        def call_or_die(*arguments: Any, **named: Any) -> Any:
            nonlocal num_calls
            num_calls += 1
            if num_calls == number:
                die()
            return original(*arguments, **named)

        setattr(owner, method, call_or_die)

    return patch


def reused(path: Path) -> list[int]:
    """Rollouts that came from the journal, by step."""
    return [row["timing"]["num_reused_rollouts"] for row in read_metrics(path / "metrics.jsonl")]


def crash(path: Path, patch: Patch, *overrides: str) -> None:
    ended = run(path, config_of(*overrides), patch)
    assert ended.exit_code == -signal.SIGKILL, ended.log


CRASHES = {
    "generating, one micro-batch done": (die_while_generating(3, 1), [16, 16, 6, 0]),
    "generating, two micro-batches done": (die_while_generating(3, 2), [16, 16, 12, 0]),
    "the first step": (die_while_generating(1, 1), [6, 0, 0, 0]),
    "scoring": (die_at_call(Learner, "score", 3), [16, 16, 16, 0]),
    "updating the critic": (die_at_call(Learner, "_critic_step", 8), [16, 16, 16, 0]),
    "updating the policy": (die_at_call(Learner, "_policy_step", 3), [16, 16, 16, 0]),
    "writing the row": (die_at_call(MetricsLog, "log", 3), [16, 16, 16, 0]),
}


@pytest.mark.parametrize("crash_point", CRASHES)
def test_only_what_was_not_finished_is_sampled_again(
    crash_point: str, unbroken: Path, tmp_path: Path
) -> None:
    """Without any checkpoint: step 0 comes from the config, all else from the journal."""
    path, (patch, expected) = tmp_path / "run", CRASHES[crash_point]
    crash(path, patch, NO_CHECKPOINTS)
    assert not list((path / "checkpoints").glob("*")) if (path / "checkpoints").exists() else True

    log = run_to_end(path, config_of(NO_CHECKPOINTS))

    assert reused(path) == expected
    num_done = max(0, len([n for n in expected if n == BATCH]) - (expected[2] == BATCH))
    assert log.count("bit for bit") == num_done
    assert_same_run(path, unbroken, STEPS)


KINDS = {"grpo": ["algorithm.name=grpo"], "everything": EVERYTHING}


@pytest.mark.parametrize("kind", KINDS)
def test_steps_after_the_last_checkpoint_are_replayed(
    kind: str, tmp_path: Path, unbroken_run: UnbrokenRuns
) -> None:
    path, overrides = tmp_path / "run", KINDS[kind]
    crash(path, die_at_call(Learner, "score", 4), *overrides)

    log = run_to_end(path, config_of(*overrides))

    assert "resuming from step-00000002, grade exact" in log
    assert "step 3: 16 rollouts from the journal, came out as in attempt 1, bit for bit" in log
    assert reused(path) == [0, 0, 16, 16]
    assert_same_run(path, unbroken_run(config_of(*overrides)), STEPS)


def test_a_crash_while_replaying_changes_nothing(unbroken: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    crash(path, die_at_call(Learner, "score", 4), NO_CHECKPOINTS)
    crash(path, die_at_call(Learner, "_policy_step", 2), NO_CHECKPOINTS)
    crash(path, die_at_call(Learner, "score", 3), NO_CHECKPOINTS)
    log = run_to_end(path, config_of(NO_CHECKPOINTS))
    assert reused(path) == [16, 16, 16, 16]
    assert log.count("bit for bit") == 3
    assert_same_run(path, unbroken, STEPS)


def test_without_a_journal_the_steps_are_sampled_again(unbroken: Path, tmp_path: Path) -> None:
    """The control: it is the journal that keeps rollouts, and the bits are the same without it."""
    path = tmp_path / "run"
    crash(path, die_at_call(Learner, "score", 3), NO_CHECKPOINTS, "journal.enabled=false")
    run_to_end(path, config_of(NO_CHECKPOINTS, "journal.enabled=false"))
    assert reused(path) == [0, 0, 0, 0]
    assert not (path / "rollouts").exists()
    assert_same_run(path, unbroken, STEPS)


def flip(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]


DAMAGES = {"flip": flip, "cut": lambda data: data[:-1], "empty": lambda data: b""}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_segment_is_quarantined_and_made_again(damage: str, unbroken: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    crash(path, die_at_call(Learner, "score", 3), NO_CHECKPOINTS, "journal.flush_rollouts=1")
    part = sorted((path / "rollouts" / "step-00000002").iterdir())[0]
    part.write_bytes(DAMAGES[damage](part.read_bytes()))

    log = run_to_end(path, config_of(NO_CHECKPOINTS))

    assert any("warning: quarantined" in line and part.name in line for line in log.splitlines())
    assert reused(path)[0] == reused(path)[2] == 16
    assert 0 <= reused(path)[1] < 16
    assert (path / "quarantine" / "step-00000002" / part.name).exists()
    assert_same_run(path, unbroken, STEPS)


def test_segments_of_another_run_are_quarantined(unbroken: Path, tmp_path: Path) -> None:
    """Another seed: other config digest, other prompts; the same names."""
    path, other = tmp_path / "run", tmp_path / "other"
    crash(path, die_at_call(Learner, "score", 2), NO_CHECKPOINTS)
    crash(other, die_at_call(Learner, "score", 3), NO_CHECKPOINTS, "train.seed=1")
    shutil.copytree(other / "rollouts", path / "rollouts", dirs_exist_ok=True)

    log = run_to_end(path, config_of(NO_CHECKPOINTS))

    assert log.count("warning: quarantined") >= 3
    assert reused(path) == [16, 16, 0, 0]
    assert_same_run(path, unbroken, STEPS)


def test_another_start_is_noticed(tmp_path: Path) -> None:
    """Without a checkpoint a run begins where it began, or not at all."""
    path = tmp_path / "run"
    crash(path, die_at_call(Learner, "score", 1), NO_CHECKPOINTS)
    start = path / "start.json"
    start.write_text(start.read_text().replace('"policy.params": "', '"policy.params": "0'))
    ended = run(path, config_of(NO_CHECKPOINTS))
    assert ended.exit_code == 1
    assert "the state at step 0 is not what this run started from: first in policy.params" in ended.log
