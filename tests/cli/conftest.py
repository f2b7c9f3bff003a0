"""The commands: as processes of their own, and (where the process does not matter) in this one."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from yaoki.cli.main import main

REPOSITORY = Path(__file__).parents[2]
RECIPE = REPOSITORY / "recipes" / "tiny.toml"
OVERRIDES = [
    "run.device=cpu",
    "train.steps=2",
    "train.num_prompts=4",
    "train.group_size=4",
    "data.verifier=tests.support.harness:judge_by_hash",
    "policy.init_from=builtin:tiny-random",
    "policy.lr=3e-4",
    "engine.max_new_tokens=8",
    "engine.batch_size=8",
    'engine.stop=["a","e","i","1","2","3","=","<"]',
    "eval.every_steps=2",
    "eval.num_tasks=8",
    "checkpoint.every_steps=1",
]


@dataclass(frozen=True)
class Done:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str


def run_process(*words: str, folder: Path) -> Done:
    """`yaoki WORDS` as a user would run it in `folder`, its output in pipes."""
    done = subprocess.run(
        [sys.executable, "-m", "yaoki", *words], cwd=folder, capture_output=True, text=True, timeout=240
    )
    return Done(done.returncode, done.stdout, done.stderr)


@dataclass(frozen=True)
class Trained:
    """A run that the command line made; nobody may write into it."""

    folder: Path
    """Where the command was given; the run is in runs/tiny."""
    done: Done

    @property
    def recipe(self) -> Path:
        return self.folder / "tiny.toml"

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "tiny"


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, _surroundings: None) -> Trained:
    folder = tmp_path_factory.mktemp("user")
    shutil.copy(RECIPE, folder)
    return Trained(folder, run_process("train", "tiny.toml", *OVERRIDES, folder=folder))


@pytest.fixture
def copied(trained: Trained, tmp_path: Path) -> Path:
    """A copy of that run."""
    return Path(shutil.copytree(trained.run, tmp_path / "run"))


@pytest.fixture
def yaoki(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Done]:
    """`yaoki WORDS` in this process, in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["yaoki", *map(str, words)])
        capfd.readouterr()
        code: object = 0
        try:
            main()
        except SystemExit as leaving:
            code = leaving.code or 0
        out, err = capfd.readouterr()
        assert isinstance(code, int)
        return Done(code, out, err)

    return run
