"""Attempts of a tiny run: here, or in a forked process that is to die. Signals come at known places."""

import io
import multiprocessing
import os
from pathlib import Path

from rich.console import Console as RichConsole

from tests.support.harness import make_config
from yaoki.config.schema import Config
from yaoki.runs.directory import RunDirectory
from yaoki.train.console import Console
from yaoki.train.session import Outcome, train

REPOSITORY = Path(__file__).parents[2]
STEPS = 3
BATCHES_PER_STEP = 3
"""16 rollouts in micro-batches of 6."""


def config_of(*overrides: str) -> Config:
    """Checkpoints of steps 2 and 3, and every network that a run can have."""
    return make_config(f"train.steps={STEPS}", "kl.measure=true", *overrides)


class SignallingConsole(Console):
    """Sends a signal to its own process in the middle of a step's generation."""

    def __init__(self, number: int, step: int, output: io.StringIO) -> None:
        super().__init__(0, RichConsole(file=output, width=80))
        self._number = number
        self._left = BATCHES_PER_STEP * (step - 1) + 2

    def generating(self, done: int, total: int) -> None:
        super().generating(done, total)
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), self._number)


def train_here(path: Path, config: Config, output: io.StringIO | None = None) -> Outcome:
    """An attempt in this process; what it shows goes to `output`."""
    with Console(0, RichConsole(file=output or io.StringIO(), width=80)) as console:
        return train(RunDirectory(path), config, console)


def shown_by(path: Path, config: Config) -> str:
    """What an attempt shows."""
    output = io.StringIO()
    train_here(path, config, output)
    return output.getvalue()


def train_and_signal(path: Path, config: Config, number: int, step: int) -> str:
    """An attempt in this process that gets a signal while it generates `step`'s rollouts."""
    output = io.StringIO()
    with SignallingConsole(number, step, output) as console:
        train(RunDirectory(path), config, console)
    return output.getvalue()


def die_while_generating(path: Path, config: Config, number: int, step: int) -> int:
    """The same in a process of its own; returns its exit code, negative for a signal."""
    process = multiprocessing.get_context("fork").Process(
        target=train_and_signal, args=(path, config, number, step)
    )
    process.start()
    process.join(120)
    assert process.exitcode is not None, "the attempt hangs"
    return process.exitcode
