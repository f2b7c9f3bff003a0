"""The commands: as processes of their own, and (where the process does not matter) in this one."""

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.shared import made_once
from yaoki.cli.main import main

from .commands import OVERRIDES, RECIPE, Done, Trained, run_process


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, _surroundings: None) -> Trained:
    """A run that the command line trained, once a session; read-only."""

    def train(folder: Path) -> None:
        shutil.copy(RECIPE, folder)
        done = run_process("train", "tiny.toml", *OVERRIDES, folder=folder)
        (folder / "done.json").write_text(json.dumps(dataclasses.asdict(done)))

    folder = made_once(tmp_path_factory, "trained-by-command", train)
    return Trained(folder, Done(**json.loads((folder / "done.json").read_text())))


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
