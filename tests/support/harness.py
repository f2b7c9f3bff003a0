"""Runs small enough to be killed by the dozen: real processes, real files, a model that really learns.

Rewards come from a stable hash of the text (tests/support/judge.py), so about half of the completions that
stop earn one and every update moves the weights.
"""

import json
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.metrics import read_metrics
from yaoki.checkpoint.catalog import Catalog
from yaoki.checkpoint.verify import read_manifest, verify
from yaoki.config.load import load_config
from yaoki.config.schema import Config
from yaoki.errors import StopRequested, YaokiError
from yaoki.journal.metrics import MetricsLog
from yaoki.journal.step_row import CLOCK_FIELDS, StepRow
from yaoki.runs.directory import RunDirectory

BASE = [
    "run.num_threads=1",
    "run.device=cpu",
    "run.show_samples_every=0",
    "train.steps=6",
    "train.num_prompts=4",
    "train.group_size=4",
    "data.family=arithmetic",
    "data.tasks_per_epoch=64",
    "data.template=short",
    "data.verifier=tests.support.judge:judge_by_hash",
    "policy.init_from=builtin:tiny-random",
    "policy.lr=1e-3",
    "policy.warmup_steps=2",
    "critic.lr=1e-3",
    "critic.warmup_steps=2",
    "critic.num_mini_batches=3",
    "engine.max_new_tokens=8",
    "engine.batch_size=6",
    'engine.stop=["a","e","i","1","2","3","=","<"]',
    "eval.every_steps=2",
    "eval.num_tasks=6",
    "checkpoint.every_steps=2",
    "checkpoint.keep_last=10",
]
EVERYTHING = [
    "kl.coef=0.05",
    "kl.controller=adaptive",
    "kl.target=0.001",
    "kl.horizon=50",
    "kl.refresh_reference_every_epoch=true",
    "data.tasks_per_epoch=10",
    "policy.dropout=0.1",
    "critic.dropout=0.1",
    "policy.schedule=linear",
    "policy.decay_steps=8",
    "policy.num_mini_batches=2",
    "train.update_epochs=2",
]
"""Every mutable thing that a run can have: adaptive KL, refreshed reference, dropout, an epoch boundary
in the middle of a batch, a bending schedule."""


def make_config(*overrides: str) -> Config:
    return load_config(None, [*BASE, *overrides])


@dataclass(frozen=True)
class Ended:
    """How an attempt's process ended."""

    exit_code: int
    log: str


def start(path: Path, config: Config, before: Any = None) -> multiprocessing.Process:
    """Begin an attempt in a forked process; `before` runs in it first. Its output goes to path.log."""
    import yaoki.train.session  # noqa: F401 - imported once here, not again in every forked process

    context = multiprocessing.get_context("fork")
    process = context.Process(target=_attempt, args=(path, config, before))
    process.start()
    return process


def finish(process: multiprocessing.Process, path: Path, timeout_s: float = 240) -> Ended:
    process.join(timeout_s)
    assert process.exitcode is not None, "the attempt hangs"
    return Ended(process.exitcode, log_path(path).read_text("utf-8"))


def run(path: Path, config: Config, before: Any = None) -> Ended:
    return finish(start(path, config, before), path)


def run_to_end(path: Path, config: Config, before: Any = None) -> str:
    ended = run(path, config, before)
    assert ended.exit_code == 0, ended.log
    return ended.log


def run_and_kill(path: Path, config: Config, after_step: int, rng: random.Random) -> int:
    """SIGKILL an attempt at a random instant of the two steps after `after_step`; returns the steps done.

    The process kills itself, for on a busy machine another one may be too late for a short run.
    """
    fraction = rng.uniform(0, 2.0)

    def patch() -> None:
        log = MetricsLog.log

        def log_and_await_death(self: MetricsLog, row: StepRow) -> None:
            if row.step == after_step + 2:
                die()
            log(self, row)
            if row.step == after_step:
                threading.Timer(fraction * row.timing.step_s, die).start()

        MetricsLog.log = log_and_await_death  # type: ignore[method-assign]

    ended = run(path, config, patch)
    assert ended.exit_code == -signal.SIGKILL, ended.log
    return len(read_metrics(path / "metrics.jsonl"))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for_step(path: Path, process: multiprocessing.Process, step: int) -> None:
    """Until the row of `step` is there."""
    deadline = time.monotonic() + 120
    while not any(row["step"] >= step for row in read_metrics(path / "metrics.jsonl")):
        assert time.monotonic() < deadline, "the attempt makes no progress"
        assert process.is_alive(), log_path(path).read_text("utf-8")
        time.sleep(0.002)


def kill(process: multiprocessing.Process) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL, f"ended with {process.exitcode} before it could be killed"


def log_path(path: Path) -> Path:
    return path.with_name(path.name + ".log")


def final_state(path: Path, step: int) -> dict[str, Any]:
    """Everything of a checkpoint that an exact resume reproduces: tensor files by digest, and JSON parts."""
    directory = path / "checkpoints" / f"step-{step:08d}"
    manifest = verify(directory)
    state = json.loads((directory / "state.json").read_text("utf-8"))
    shared, own = dict(state["shared"]), dict(state["per_rank"][0])
    del shared["lineage"], shared["metrics"]
    digests = {file.name: file.xxh3_128 for file in manifest.files if file.name != "state.json"}
    return {**digests, **shared, **own}


def trajectory(path: Path) -> list[dict[str, Any]]:
    """Metrics rows without what depends on the clock; prompts and completions are in the fingerprint."""
    rows = read_metrics(path / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in CLOCK_FIELDS} for row in rows]


def assert_same_run(resumed: Path, unbroken: Path, step: int) -> None:
    """The proof: the same bits in every part and the same rows, none doubled, none missing."""
    assert final_state(resumed, step) == final_state(unbroken, step)
    assert trajectory(resumed) == trajectory(unbroken)
    assert [row["step"] for row in trajectory(resumed)] == list(range(1, step + 1))


def checkpoint_steps(path: Path) -> list[int]:
    return sorted(read_manifest(c.path).step for c in Catalog(path / "checkpoints").candidates())


def _attempt(path: Path, config: Config, before: Any) -> None:
    """One process lifetime, with the exit codes of the command line."""
    log_path(path).parent.mkdir(parents=True, exist_ok=True)
    log = os.open(log_path(path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stderr = os.fdopen(2, "w", buffering=1)  # pytest put an object of its own there
    from rich.console import Console as RichConsole

    from yaoki.train.console import Console
    from yaoki.train.session import train

    code = 0
    try:
        if before is not None:
            before()
        with Console(0, RichConsole(file=sys.stderr, width=200)) as console:
            outcome = train(RunDirectory(path), config, console)
        print("already finished" if outcome.already_finished else "finished", file=sys.stderr)
    except YaokiError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except StopRequested as reason:
        print(f"stopped: {reason}", file=sys.stderr)
        code = reason.exit_code
    sys.stderr.flush()
    os._exit(code)
