"""Several ranks with engines beside the learner's process group: one for each, or shared by neighbours."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .models import vllm_engine
from .sharing import SAMPLING, generated

pytestmark = pytest.mark.vllm

REPOSITORY = Path(__file__).parents[2]


def printed_by(program: str, *arguments: object) -> Any:
    """The JSON of its last line."""
    command = [sys.executable, "-m", f"tests.vllm_engine.{program}", *map(str, arguments)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_two_ranks_generate_by_themselves(tmp_path: Path) -> None:
    """Neither a push nor generating disturbs the group; what both are asked, both answer alike."""
    first, second = printed_by("two_ranks", tmp_path)
    assert first[1::2] == second[1::2] == [3.0, 3.0]
    for mine, others in zip(first[::2], second[::2], strict=True):
        assert others[: len(mine)] == mine
    assert first[0] != first[2]


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_two_ranks_share_an_engine(
    num_ranks: int,
    tmp_path: Path,
    learner_model: PreTrainedModel,
    other_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """They sample what one rank alone samples; one of them hands it on; they stop together."""
    ranks = printed_by("sharing", num_ranks, tmp_path)
    for version, model in (("first", learner_model), ("second", other_model)):
        alone = vllm_engine(model, tokenizer, SAMPLING)
        expected = json.loads(json.dumps(generated(alone)))
        alone.sleep()
        for number, seen in enumerate(ranks):
            assert seen[version]["tokens"] == expected["tokens"]
            for mine, others in zip(seen[version]["logprobs"], expected["logprobs"], strict=True):
                assert mine == pytest.approx(others, abs=1e-4)
            assert seen[version]["places"] == ([] if number % 2 else expected["places"])
    assert [seen["stop"] for seen in ranks] == [None] * (num_ranks - 2) + ["poll 3"] * 2
    steps = [seen["collected"] for seen in ranks]
    assert all(step["rollouts"] == steps[0]["rollouts"] for step in steps)
    places = [[index, sample] for index in range(4) for sample in range(2)]
    assert sorted(place for step in steps for place in step["logged"]) == places
    assert [len(step["logged"]) for step in steps] == [16 // num_ranks, 0] * (num_ranks // 2)
