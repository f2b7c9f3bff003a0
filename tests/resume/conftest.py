"""Shared by the resume tests: a cache of models, so that every run starts at once."""

import random
from pathlib import Path

import pytest
import torch

import yaoki.run.session  # noqa: F401 - imported once here, not in every forked attempt


@pytest.fixture(scope="session", autouse=True)
def model_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """All runs of the session share one random tiny model, made before the first is forked."""
    patch = pytest.MonkeyPatch()
    patch.setenv("YAOKI_CACHE", str(tmp_path_factory.mktemp("cache")))
    torch.set_num_threads(1)
    yield
    patch.undo()


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Random instants for kills; the seed is printed when a test fails."""
    seed = random.SystemRandom().randrange(10**6)
    print(f"kill instants from seed {seed}")
    return random.Random(seed)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path
