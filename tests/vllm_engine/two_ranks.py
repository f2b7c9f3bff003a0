"""A program: two ranks, each with an engine of its own, in processes that knew nothing of vLLM before."""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from tests.support.ranks import on_ranks
from tests.support.requests import no_poll, requests
from yaoki.models.builtin import tiny_tokenizer
from yaoki.models.policy import model_logprobs
from yaoki.ranks.world import World
from yaoki.rollout.engine import Sampling
from yaoki.train.weight_sync import check_weights, probe_ids, tolerance

from .models import vllm_engine, wide_headed


def generate(world: World) -> list[Any]:
    """Tokens of this rank's requests, before and after a push, and what the ranks add up to in between."""
    tokenizer, models = tiny_tokenizer(), [wide_headed(seed) for seed in (1, 2)]
    probe = probe_ids(tokenizer)
    engine = vllm_engine(models[0], tokenizer, Sampling(1.0, 1.0, 8, ()))
    found: list[Any] = []
    for version, model in enumerate(models):
        engine.load_weights(model.state_dict().items(), version)
        check_weights(engine, version, probe, model_logprobs(model, probe), tolerance("float32"))
        for _ in range(world.rank + 1):  # the ranks do not work in step
            completions = engine.generate(requests(tokenizer, ["1+1=", "x"][: world.rank + 1]), no_poll)
        found.append([completion.token_ids for completion in completions])
        found.append(float(world.sum(torch.tensor(1.0 + world.rank))))
    return found


if __name__ == "__main__":
    print(json.dumps(on_ranks(2, Path(sys.argv[1]), generate)))
