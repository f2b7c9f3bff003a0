"""Commands that run in the background, and what is left of them: attempts of a run, processes."""

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.support.harness import BASE, assert_same_run
from yaoki.runs.directory import RunDirectory

REPOSITORY = Path(__file__).parents[2]
STEPS = 4
OVERRIDES = [*BASE, f"train.steps={STEPS}"]
PATIENCE_S = 400.0
"""A busy machine is slow; a command that hangs must end all the same."""


@dataclass(frozen=True)
class Done:
    """How a command ended and what it said."""

    code: int
    said: str


class Command:
    """A command in the background; its output is in a file."""

    def __init__(self, words: list[str], log: Path) -> None:
        self._log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *words], cwd=REPOSITORY, stdout=file, stderr=file
            )

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE_S
        while not condition():
            assert self.process.poll() is None, self._log.read_text()
            assert time.monotonic() < end, self._log.read_text()
            time.sleep(0.02)

    def done(self) -> Done:
        code = self.process.wait(PATIENCE_S)
        return Done(code, self._log.read_text())


def outcomes(path: Path) -> list[str]:
    """How the attempts of a run ended."""
    return [attempt.outcome for attempt in RunDirectory(path).attempts()]


def processes_of(path: Path) -> list[int]:
    """Processes that have this run on their command line."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(path).encode() in words:
            found.append(int(process.name))
    return found


def assert_as_unbroken(path: Path, unbroken: Path) -> None:
    assert_same_run(path, unbroken, STEPS)
