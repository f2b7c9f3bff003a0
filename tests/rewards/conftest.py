import os
import sys
from pathlib import Path

import pytest

HERE = str(Path(__file__).parent)


@pytest.fixture(autouse=True)
def _user_code_is_importable(monkeypatch):
    """`user_verifiers` can be imported here and in worker processes, as a user's PYTHONPATH would do."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [HERE, os.environ.get("PYTHONPATH")])))
    if HERE not in sys.path:
        monkeypatch.syspath_prepend(HERE)
