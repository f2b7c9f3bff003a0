import os
from pathlib import Path

import pytest

from yaoki.models.builtin import Pretraining, tiny_base

from .samples import no_example


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a tiny model with random weights; nobody may write into it."""
    before = os.environ.get("YAOKI_CACHE")
    os.environ["YAOKI_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    try:
        folder = tiny_base(no_example, "random", Pretraining(steps=0), lambda done, total: None)
    finally:
        if before is None:
            del os.environ["YAOKI_CACHE"]
        else:
            os.environ["YAOKI_CACHE"] = before
    return str(folder)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of base models."""
    monkeypatch.setenv("YAOKI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
