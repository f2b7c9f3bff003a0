"""Launchers as a user meets them: commands, real processes, small runs."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.harness import BASE, assert_same_run, make_config
from tests.support.shared import UnbrokenRuns
from yaoki.runs.directory import RunDirectory

REPOSITORY = Path(__file__).parents[2]
STEPS = 4
OVERRIDES = [*BASE, f"train.steps={STEPS}"]
PATIENCE_S = 400.0
"""A busy machine is slow; what hangs must end all the same."""


@dataclass(frozen=True)
class Done:
    """How a command ended and what it said."""

    code: int
    said: str


@pytest.fixture(scope="session", autouse=True)
def _hooks(tmp_path_factory: pytest.TempPathFactory, _surroundings: None) -> Iterator[None]:
    """The hooks in every process."""
    places = [str(REPOSITORY / "tests/launch/hooks"), str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, places)))
        patch.setenv("YAOKI_TEST_PLANS", str(tmp_path_factory.mktemp("plans")))
        yield


@pytest.fixture
def plans() -> Iterator[Path]:
    """Where to write what a worker shall do; see the hooks."""
    path = Path(os.environ["YAOKI_TEST_PLANS"])
    yield path
    for plan in path.iterdir():
        plan.unlink()


@pytest.fixture
def unbroken(unbroken_run: UnbrokenRuns) -> Path:
    """A run of two workers that no launcher has started."""
    return unbroken_run(make_config(f"train.steps={STEPS}"), num_workers=2)


class Command:
    """A command at work; its output is in a file."""

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


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """Begin `python -m WORDS`; whatever is left of it at the end of the test is killed."""
    commands: list[Command] = []

    def begin(*words: str) -> Command:
        commands.append(Command(list(words), tmp_path / f"command-{len(commands)}.log"))
        return commands[-1]

    yield begin
    for command in commands:
        command.process.kill()
        command.process.wait()


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """All is said in overrides."""
    path = tmp_path / "recipe.toml"
    path.write_text("")
    return path


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


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"
