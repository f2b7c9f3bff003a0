"""What every room's tests stand on: one cache of models, one thread, an importable `tests` package."""

import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from tests.support.shared import UnbrokenRuns, session_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

REPOSITORY = Path(__file__).parents[1]

# A busy machine is no failure.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


PROCESS_ROOMS = {"cli", "faults", "launch", "mirror", "resume", "vllm_engine"}
PROCESS_MODULES = {f"tests.support.{name}" for name in ("attempts", "harness", "ranks", "workers")}
PROCESS_FIXTURES = {"finished", "unbroken_run"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what `make check` leaves out."""
    for item in items:
        if isinstance(item, pytest.Function) and starts_processes(item):
            item.add_marker("processes")


def starts_processes(item: pytest.Function) -> bool:
    """Whether a test trains a run or starts ranks, as far as its room, its imports and its fixtures show."""
    room = item.path.relative_to(REPOSITORY / "tests").parts[0]
    if room == "golden":
        return False  # short, and what every refactor must leave identical
    imported = {getattr(value, "__module__", None) for value in vars(item.module).values()}
    return (
        room in PROCESS_ROOMS
        or bool(imported & PROCESS_MODULES)
        or bool(PROCESS_FIXTURES & set(item.fixturenames))
    )


@pytest.fixture(scope="session", autouse=True)
def _surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """All runs of the session share one cache of models; the tests' verifiers can be imported everywhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("YAOKI_CACHE", str(session_folder(tmp_path_factory) / "cache"))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
        yield


@pytest.fixture(autouse=True)
def _one_thread():
    """On busy cores two threads are far slower than one. A test that imports no torch pays nothing."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> "PreTrainedTokenizerBase":
    """The built-in model's."""
    from yaoki.models.builtin import tiny_tokenizer

    return tiny_tokenizer()


@pytest.fixture(scope="session")
def learner_model() -> "PreTrainedModel":
    """The weights that are pushed to an engine; read-only."""
    from yaoki.models.builtin import tiny_random

    return tiny_random(1).eval().requires_grad_(False)


@pytest.fixture
def rng() -> random.Random:
    """Random instants for kills; the seed is printed when a test fails."""
    seed = random.SystemRandom().randrange(10**6)
    print(f"kill instants from seed {seed}")
    return random.Random(seed)


@pytest.fixture(scope="session")
def unbroken_run(tmp_path_factory: pytest.TempPathFactory, _surroundings: None) -> Iterator[UnbrokenRuns]:
    """`unbroken_run(config)` is a run that was never interrupted, trained once a session; read-only."""
    runs = UnbrokenRuns(tmp_path_factory)
    yield runs
    runs.check()


@pytest.fixture(scope="session")
def finished(unbroken_run: UnbrokenRuns) -> Path:
    """A run of STEPS steps with checkpoints of steps 2 and 3; read-only."""
    from tests.support.attempts import config_of

    return unbroken_run(config_of())


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def unfinished(copied: Path) -> Path:
    """As if killed right after the last step, before its checkpoint: rows of step 3, checkpoint of step 2."""
    from tests.support.attempts import STEPS

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
