"""The engine on vLLM beside the one on transformers: tokens per second, pushes of weights, seeds.

Both sample the same prompts, 128 completions in groups of 8, from the same model with random weights, of
about one million parameters or (`--model 10m`) ten:

- `fixed`: 64 tokens each, nothing stops;
- `mixed`: stop at one of some letters, so that most rows are short and some go on to the limit of 256.

Rounds are interleaved in random order, so that a busy machine disturbs both alike. A push is from the
learner's weights to an engine whose log-probabilities agree with them; the first one of vLLM, which compiles,
is apart.

Needs vLLM: make .venv-vllm/installed; .venv-vllm/bin/python benchmarks/vllm_engine.py
"""

import argparse
import json
import random
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import torch
from transformers import Qwen2ForCausalLM

from yaoki.models.builtin import tiny_config, tiny_tokenizer
from yaoki.models.determinism import configure
from yaoki.models.policy import model_logprobs
from yaoki.rollout.engine import Request, RolloutEngine, Sampling
from yaoki.rollout.engines.transformers import TransformersEngine
from yaoki.rollout.engines.vllm import VllmEngine
from yaoki.rollout.engines.vllm_weights import VllmOptions
from yaoki.seeding import Purpose, seed
from yaoki.train.weight_sync import check_weights, probe_ids, tolerance

BATCH_SIZE = 128
GROUP_SIZE = 8


@dataclass(frozen=True)
class Job:
    """One way of sampling."""

    name: str
    max_new_tokens: int
    stop: tuple[str, ...]


JOBS = (Job("fixed", 64, ()), Job("mixed", 256, tuple("aeiou")))


def model_of(size: str, seed_value: int) -> Qwen2ForCausalLM:
    """Random weights; attention heads of a width that vLLM's CPU kernels know."""
    config = tiny_config(tiny_tokenizer())
    config.num_attention_heads = config.num_key_value_heads = 4
    if size == "10m":
        config.hidden_size, config.intermediate_size = 320, 1024
        config.num_attention_heads = config.num_key_value_heads = 5
        config.num_hidden_layers, config.layer_types = 7, ["full_attention"] * 7
    torch.manual_seed(seed_value)
    return Qwen2ForCausalLM(config).eval().requires_grad_(False)


class Contest:
    """The learner's model, and both engines for each job."""

    def __init__(self, size: str) -> None:
        self.model = model_of(size, 0)
        self.tokenizer = tiny_tokenizer()
        texts = [f"{row // GROUP_SIZE}+38-12=" for row in range(BATCH_SIZE)]
        self.prompts = [tuple(self.tokenizer(text)["input_ids"]) for text in texts]
        self._size = size
        self._probe = probe_ids(self.tokenizer)

    def engine(self, name: str, job: Job) -> RolloutEngine:
        sampling = Sampling(1.0, 1.0, job.max_new_tokens, job.stop)
        if name == "transformers":
            return TransformersEngine(model_of(self._size, 1), self.tokenizer, sampling)
        options = VllmOptions("float32", 512, BATCH_SIZE, 0.5, in_place=False)
        return VllmEngine(self.model.config, self.tokenizer, sampling, options)

    def push(self, engine: RolloutEngine, version: int) -> float:
        """Seconds until the engine's log-probabilities agree."""
        expected = model_logprobs(self.model, self._probe)
        start = perf_counter()
        engine.load_weights(self.model.state_dict().items(), version)
        check_weights(engine, version, self._probe, expected, tolerance("float32"))
        return perf_counter() - start

    def requests(self, number: int) -> list[Request]:
        return [
            Request(prompt, seed(0, Purpose.ROLLOUT, number, row)) for row, prompt in enumerate(self.prompts)
        ]


def measure_speed(
    contest: Contest, engines: dict[str, RolloutEngine], num_rounds: int
) -> dict[str, dict[str, float]]:
    """Median tokens per second and mean length by engine, over `num_rounds` rounds after one to warm up."""
    speeds: dict[str, list[float]] = {name: [] for name in engines}
    lengths: dict[str, list[float]] = {name: [] for name in engines}
    order, names = random.Random(0), list(engines)
    for number in range(num_rounds + 1):
        order.shuffle(names)
        for name in names:
            requests = contest.requests(number)
            start = perf_counter()
            completions = engines[name].generate(requests, lambda: None)
            seconds = perf_counter() - start
            num_tokens = sum(len(completion.token_ids) for completion in completions)
            if number:
                speeds[name].append(num_tokens / seconds)
                lengths[name].append(num_tokens / BATCH_SIZE)
    return {
        name: {"tokens_per_s": round(median(speeds[name])), "mean_length": round(median(lengths[name]), 1)}
        for name in engines
    }


def share_reproduced(contest: Contest, engine: RolloutEngine) -> dict[str, float]:
    """Completions that come out with the same tokens: again, a quarter of them alone, after another push."""
    requests = contest.requests(0)
    first = [completion.token_ids for completion in engine.generate(requests, lambda: None)]

    def same(places: range) -> float:
        found = engine.generate([requests[place] for place in places], lambda: None)
        return sum(c.token_ids == first[place] for c, place in zip(found, places, strict=True)) / len(places)

    shares = {"again": same(range(BATCH_SIZE)), "a_quarter_alone": same(range(0, BATCH_SIZE, 4))}
    contest.push(engine, 1000)
    return shares | {"after_a_push": same(range(BATCH_SIZE))}


def measure(size: str, num_rounds: int) -> dict[str, Any]:
    """All figures of one model."""
    contest = Contest(size)
    figures: dict[str, Any] = {"num_parameters": sum(p.numel() for p in contest.model.parameters())}
    for job in JOBS:
        engines = {name: contest.engine(name, job) for name in ("transformers", "vllm")}
        first_push_s = {name: contest.push(engine, 0) for name, engine in engines.items()}
        figures[job.name] = measure_speed(contest, engines, num_rounds)
        if "push_s" not in figures:
            pushes = {
                name: median(contest.push(engine, version) for version in range(1, num_rounds + 1))
                for name, engine in engines.items()
            }
            figures["first_push_s"] = {name: round(found, 3) for name, found in first_push_s.items()}
            figures["push_s"] = {name: round(found, 3) for name, found in pushes.items()}
            figures["reproduced"] = {
                name: share_reproduced(contest, engine) for name, engine in engines.items()
            }
        for engine in engines.values():
            engine.sleep()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", choices=("1m", "10m"), default="1m", help="size (default 1m)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds (default 5)")
    arguments = parser.parse_args()
    configure(deterministic=True, num_threads=arguments.threads)
    print(json.dumps(measure(arguments.model, arguments.rounds), indent=2))


if __name__ == "__main__":
    main()
