"""A run whose engine is vLLM, from the command line: it learns from what it samples, and resumes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest

from yaoki.models.builtin import tiny_tokenizer

from .models import wide_headed

pytestmark = pytest.mark.vllm

RECIPE = Path(__file__).parents[2] / "recipes" / "tiny.toml"


def train(*arguments: object) -> None:
    command = [sys.executable, "-m", "yaoki", "train", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_two_steps_and_a_third(tmp_path: Path) -> None:
    wide_headed(1).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    run = tmp_path / "run"
    train(
        RECIPE, "--run", run, "engine.type=vllm", f"policy.init_from={tmp_path / 'model'}", "train.steps=2",
        "train.num_prompts=4", "eval.every_steps=0", "checkpoint.every_steps=1", "journal.keep=all",
    )  # fmt: skip
    train("--run", run, "train.steps=3")
    rows: list[dict[str, Any]] = [
        json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()
    ]
    assert [(row["step"], row["policy_version"], row["attempt"]) for row in rows] == [
        (1, 0, 1), (2, 1, 1), (3, 2, 2),
    ]  # fmt: skip
    assert all(0 < row["logprob_gap_max"] < 1e-4 for row in rows)
    parts = sorted((run / "rollouts").rglob("*.parquet"))
    assert {engine for part in parts for engine in parquet.read_table(part)["engine"].to_pylist()} == {"vllm"}
    assert sum(parquet.read_metadata(part).num_rows for part in parts) == 3 * 4 * 8
