"""One finished run that the tests of a whole run copy and maltreat; made once, in this process."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from .attempts import REPOSITORY, STEPS, config_of, train_here


@pytest.fixture(scope="session", autouse=True)
def _surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of models for the session, and the tests' verifier importable in worker processes."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("YAOKI_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
        yield


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, _surroundings: None) -> Path:
    """An unbroken run of STEPS steps with checkpoints of steps 2 and 3; nobody may write into it."""
    path = tmp_path_factory.mktemp("finished") / "run"
    train_here(path, config_of(f"train.steps={STEPS}"))
    return path


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def unfinished(copied: Path) -> Path:
    """As if killed right after the last step, before its checkpoint: rows of step 3, checkpoint of step 2."""
    shutil.rmtree(copied / "checkpoints" / f"step-{STEPS:08d}")
    (copied / "summary.json").unlink()
    return copied


@pytest.fixture
def contents() -> Callable[[Path], dict[str, bytes]]:
    """Every file of a folder with its bytes, the lock aside."""

    def read(folder: Path) -> dict[str, bytes]:
        files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "lock"]
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}

    return read
