"""Launchers as a user meets them: commands, real processes, small runs."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.harness import make_config
from tests.support.shared import UnbrokenRuns

from .commands import REPOSITORY, STEPS, Command


@pytest.fixture(scope="module", autouse=True)
def _hooks(tmp_path_factory: pytest.TempPathFactory, _surroundings: None) -> Iterator[None]:
    """The hooks in every process that these tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(REPOSITORY / "tests/launch/hooks"), prepend=os.pathsep)
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


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """Begin `python -m WORDS`; a process that still runs at the end of the test is killed."""
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
    """An empty recipe: the tests set everything in overrides."""
    path = tmp_path / "recipe.toml"
    path.write_text("")
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"
