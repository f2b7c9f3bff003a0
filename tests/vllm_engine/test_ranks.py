"""Several ranks, each with an engine of its own beside the learner's process group."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.vllm

REPOSITORY = Path(__file__).parents[2]


def test_two_ranks_generate_by_themselves(tmp_path: Path) -> None:
    """Neither a push nor generating disturbs the group; what both are asked, both answer alike."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.vllm_engine.two_ranks", str(tmp_path)],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = json.loads(done.stdout.splitlines()[-1])
    assert first[1::2] == second[1::2] == [3.0, 3.0]
    for mine, others in zip(first[::2], second[::2], strict=True):
        assert others[: len(mine)] == mine
    assert first[0] != first[2]
