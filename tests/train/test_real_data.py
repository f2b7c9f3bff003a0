"""Real problems go all the way through: files, template, dropping, generation, math verifier, update."""

import json
from pathlib import Path

import pytest

from tests.support.attempts import REPOSITORY, shown_by
from tests.support.metrics import read_metrics
from yaoki.config.load import load_config

DATA = REPOSITORY.parent / "shared" / "data"


@pytest.mark.skipif(not (DATA / "orz_math_2k.json").exists(), reason="no real data here")
def test_a_step_on_real_problems(tmp_path: Path) -> None:
    settings = [
        "run.num_threads=1",
        "run.device=cpu",
        f"data.files={json.dumps([str(DATA / 'orz_math_2k.json')])}",
        "data.max_prompt_tokens=900",
        "policy.init_from=builtin:tiny-random",
        "train.steps=1",
        "train.num_prompts=4",
        "train.group_size=2",
        "critic.num_mini_batches=2",
        "engine.max_new_tokens=16",
        f"eval.files={json.dumps([str(DATA / 'math500.json')])}",
        "eval.num_tasks=4",
    ]
    shown = shown_by(tmp_path / "run", load_config(None, settings))

    assert "orz_math_2k.json: 2028 tasks" in shown
    assert "of 2028 prompts are longer than 900 tokens: dropped" in shown
    assert "math500.json: 500 tasks" in shown
    (row,) = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert (row["accuracy"], row["reward"]) == (0, 0)
    assert row["length"] <= 16
