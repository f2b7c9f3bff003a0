"""Several workers train one run: killed and resumed it is unbroken; another number goes on with it."""

import os
import random
import re
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.harness import EVERYTHING, assert_same_run, die, make_config, trajectory
from tests.support.ranks import Failure, on_ranks, outcomes
from tests.support.shared import UnbrokenRuns
from tests.support.workers import Patch, run_workers_to_end, worker
from yaoki.checkpoint.catalog import Catalog
from yaoki.checkpoint.io.reader import load
from yaoki.journal.step_row import StepRow
from yaoki.learner.learner import Learner
from yaoki.ranks.world import World
from yaoki.rollout.engines.transformers import TransformersEngine
from yaoki.runs.directory import RunDirectory
from yaoki.train.recorder import StepRecorder

STEPS = 6


def kill_after(step: int, delay_s: float, *ranks: int) -> Patch:
    """Some ranks die so long after `step`, in whatever they do then; at the latest after the next one."""

    def patch(world: World) -> None:
        if world.rank not in ranks:
            return
        record = StepRecorder.record

        def record_and_await_death(self: StepRecorder, row: StepRow) -> None:
            if row.step >= step + 2:
                die()
            record(self, row)
            if row.step >= step:
                threading.Timer(delay_s, die).start()

        StepRecorder.record = record_and_await_death  # type: ignore[method-assign]

    return patch


@pytest.mark.parametrize("kills", [[(1,), (0,)], [(0, 1)]], ids=["one after the other", "both at once"])
def test_killed_and_resumed_is_unbroken(
    kills: list[tuple[int, ...]], tmp_path: Path, unbroken_run: UnbrokenRuns, rng: random.Random
) -> None:
    config = make_config(*EVERYTHING)
    for killed_ranks in kills:
        patch = kill_after(rng.randrange(1, STEPS - 2), rng.uniform(0, 1.5), *killed_ranks)
        ended = outcomes(2, tmp_path, worker(tmp_path / "killed", config, patch))
        assert not set(killed_ranks) & ended.keys()
        for failure in ended.values():
            assert isinstance(failure, Failure)
            assert "PeerLostError" in failure.text
    log = run_workers_to_end(tmp_path / "killed", config, 2)
    assert "grade exact" in log or "starting at step 0" in log
    assert_same_run(tmp_path / "killed", unbroken_run(config, num_workers=2), STEPS)


def test_two_workers_train_what_one_trains(unbroken_run: UnbrokenRuns) -> None:
    """Until rounding has changed a sampled token: the first steps."""
    config = make_config()
    alone, together = trajectory(unbroken_run(config)), trajectory(unbroken_run(config, num_workers=2))
    for one, two in zip(alone[:3], together[:3], strict=True):
        for name in ("reward", "length", "policy_loss", "policy_grad_norm", "critic_loss", "policy_entropy"):
            assert one[name] == pytest.approx(two[name], rel=1e-3, abs=1e-5), (one["step"], name)


@pytest.mark.parametrize(("writers", "readers"), [(1, 2), (2, 1), (2, 3), (4, 2)])
def test_another_number_of_workers_goes_on(
    writers: int, readers: int, tmp_path: Path, unbroken_run: UnbrokenRuns
) -> None:
    """The first step samples what it would have with as many workers as before, to the bit."""
    unbroken = unbroken_run(make_config(), writers)
    path = copied_as_of_step_4(unbroken, tmp_path / "run")
    saved = Catalog(path / "checkpoints").choose().checkpoint
    assert saved is not None
    assert saved.manifest.world_size == writers
    log = run_workers_to_end(path, make_config("checkpoint.every_steps=0"), readers)
    assert "grade elastic: same state, prompts, seeds and schedule" in log
    assert f"rounding differs because num_workers was {writers}, is {readers}" in log
    ours, theirs = trajectory(path), trajectory(unbroken)
    assert [row["step"] for row in ours] == list(range(1, STEPS + 1))
    assert ours[:4] == theirs[:4]
    assert ours[4]["fingerprint"]["rollouts"] == theirs[4]["fingerprint"]["rollouts"]
    for name in ("epoch", "policy_lr", "critic_lr", "policy_version"):
        assert [row[name] for row in ours] == [row[name] for row in theirs]


def copied_as_of_step_4(run: Path, path: Path) -> Path:
    """A copy of a run of 6 steps, as if it had been killed right after step 4."""
    shutil.copytree(run, path)
    shutil.rmtree(path / "checkpoints" / "step-00000006")
    for step in (5, 6):
        shutil.rmtree(path / "rollouts" / f"step-{step:08d}", ignore_errors=True)
    rows = (path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (path / "metrics.jsonl").write_text("".join(rows[:4]))
    (path / "summary.json").unlink()
    return path


def test_what_was_sampled_is_dealt_out_anew(tmp_path: Path) -> None:
    """Three workers die in step 2's update; two go on with all rollouts of it, and sample none."""
    config = make_config("train.steps=2", "checkpoint.every_steps=0", "engine.batch_size=2")

    def die_in_update(world: World) -> None:
        update = Learner.update

        def update_or_die(self: Learner, experience: Any, step: int, *rest: Any) -> Any:
            if step == 2:
                die()
            return update(self, experience, step, *rest)

        Learner.update = update_or_die  # type: ignore[method-assign]

    assert outcomes(3, tmp_path, worker(tmp_path / "run", config, die_in_update)) == {}
    parts = sorted(path.name[:8] for path in (tmp_path / "run" / "rollouts" / "step-00000002").iterdir())
    assert set(parts) == {"rank-000", "rank-001", "rank-002"}

    log = run_workers_to_end(tmp_path / "run", config, 2)
    assert log.count("step 2: 16 rollouts from the journal") == 1


@pytest.mark.parametrize("place", ["generate", "update"])
@pytest.mark.parametrize("rank", [0, 1])
def test_one_worker_is_told_to_stop_and_all_do(
    place: str, rank: int, tmp_path: Path, unbroken_run: UnbrokenRuns
) -> None:
    config = make_config("train.steps=50", "checkpoint.every_steps=0")

    def stop_in_third_step(world: World) -> None:
        owner: Any = {"generate": TransformersEngine, "update": Learner}[place]
        method, num_calls = getattr(owner, place), 0

        def stopping(self: Any, *arguments: Any) -> Any:
            nonlocal num_calls
            num_calls += 1
            if num_calls == 3 and world.rank == rank:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.05)
            return method(self, *arguments)

        setattr(owner, place, stopping)

    ended = on_ranks(2, tmp_path, worker(tmp_path / "run", config, stop_in_third_step))
    assert ended == ["stopped: SIGTERM received"] * 2
    attempts = RunDirectory(tmp_path / "run").attempts()
    assert [attempt.outcome for attempt in attempts] == ["stopped"]
    config = make_config()
    run_workers_to_end(tmp_path / "run", config, 2)
    assert_same_run(tmp_path / "run", unbroken_run(config, num_workers=2), STEPS)


def test_a_worker_that_fails_is_the_end_of_all(tmp_path: Path) -> None:
    """Within the time that it takes to notice, not after the time limit."""

    def fail(world: World) -> None:
        def generate(self: Any, *arguments: Any) -> Any:
            raise ZeroDivisionError("on purpose")

        if world.rank == 1:
            TransformersEngine.generate = generate  # type: ignore[method-assign]

    begin = time.monotonic()
    ended = outcomes(3, tmp_path, worker(tmp_path / "run", make_config(), fail), timeout_s=1000)
    assert time.monotonic() - begin < 200
    assert "on purpose" in ended[1].text
    for rank in (0, 2):
        assert re.search("PeerLostError: another worker of this run is lost", ended[rank].text)
        assert "GLHF" not in ended[rank].text.rpartition("PeerLostError: ")[2]


def test_a_run_of_several_is_refused_as_that_of_one_is(tmp_path: Path, unbroken_run: UnbrokenRuns) -> None:
    """What the first worker finds out, the others say too."""
    path = Path(shutil.copytree(unbroken_run(make_config("train.steps=4"), num_workers=2), tmp_path / "run"))
    ended = outcomes(2, tmp_path, worker(path, make_config("train.seed=3")))
    assert len(ended) == 2
    for failure in ended.values():
        assert "this run cannot go on with a changed config" in failure.text


def test_weights_are_spread_in_the_checkpoint(unbroken_run: UnbrokenRuns) -> None:
    run = unbroken_run(make_config("train.steps=4"), num_workers=2)
    directory = run / "checkpoints" / "step-00000004"
    sizes = [path.stat().st_size for path in sorted(directory.glob("policy.params-*"))]
    assert len(sizes) == 2
    assert max(sizes) < 1.2 * min(sizes)
    assert torch.isfinite(load(directory).parts["policy.params"].tensors["model.norm.weight"]).all()
