"""Shared by the resume tests."""

from pathlib import Path

import pytest

import yaoki.train.session  # noqa: F401 - imported once here, not in every forked attempt


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path
