"""A program: ranks of which two and two share an engine; prints what each saw, as JSON.

`sharing.py NUM_RANKS FOLDER`
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.ranks import on_ranks
from tests.support.requests import no_poll, requests
from yaoki.errors import StopRequested
from yaoki.journal.journal import NullJournal
from yaoki.models.builtin import tiny_tokenizer
from yaoki.models.policy import model_logprobs
from yaoki.ranks.world import World
from yaoki.rollout.collect import Collector
from yaoki.rollout.engine import Sampling
from yaoki.rollout.engines.vllm import VllmEngine
from yaoki.train.weight_sync import check_weights, probe_ids, tolerance
from yaoki.types import Poll, Prompt, Rollout, RolloutKey, Task, Verdict, VerdictReason

from .models import vllm_engine, wide_headed

SAMPLING = Sampling(1.0, 1.0, 8, ())


class Journal(NullJournal):
    """Finds nothing; keeps the keys of what is appended."""

    def __init__(self) -> None:
        self.keys: list[RolloutKey] = []

    def append(self, rollouts: Sequence[Rollout]) -> None:
        self.keys += [rollout.key for rollout in rollouts]


class AlwaysRight:
    """A verifier."""

    def verify(self, jobs: Sequence[tuple[Task, str]], poll: Poll) -> list[Verdict]:
        return [Verdict(1.0, VerdictReason.CORRECT) for _ in jobs]


def generated(engine: VllmEngine) -> dict[str, Any]:
    """Tokens and log-probabilities of all, and the places of those that were handed on here."""
    places: list[int] = []
    completions = engine.generate(requests(tiny_tokenizer()), no_poll, lambda place, _: places.append(place))
    return {
        "tokens": [completion.token_ids for completion in completions],
        "logprobs": [completion.logprobs for completion in completions],
        "places": sorted(places),
    }


def reason_of_a_stop(engine: VllmEngine, *, raises_at: int) -> str | None:
    """With a `poll` that asks to stop at its call of that number; 0 for never."""
    num_polls = 0

    def poll() -> None:
        nonlocal num_polls
        num_polls += 1
        if num_polls == raises_at:
            raise StopRequested(f"poll {raises_at}")

    try:
        engine.generate(requests(tiny_tokenizer()), poll)
    except StopRequested as stop:
        return str(stop)
    return None


def collected(engine: VllmEngine, world: World) -> dict[str, Any]:
    """A step of rollouts, with what this rank alone did for it."""
    journal, tokenizer = Journal(), tiny_tokenizer()
    prompts = [
        Prompt(Task(text, text, "1", "test"), text, tuple(tokenizer(text)["input_ids"])) for text in "abcd"
    ]
    collector = Collector(
        engine=engine, verifier=AlwaysRight(), journal=journal, world=world, ranks_per_engine=2, run_seed=1,
        group_size=2, num_eval_samples=2, batch_size=4, poll=no_poll,
    )  # fmt: skip
    rollouts = collector.training(prompts, 1, lambda done, total: None)
    logged = [(key.prompt, key.sample) for key in journal.keys]
    return {"logged": logged, "rollouts": [rollout.completion.token_ids for rollout in rollouts]}


def work(world: World) -> dict[str, Any]:
    """Generate, be stopped on the last rank alone, take other weights, generate."""
    models, tokenizer = [wide_headed(seed) for seed in (1, 2)], tiny_tokenizer()
    probe = probe_ids(tokenizer)
    engine = vllm_engine(models[0], tokenizer, SAMPLING, tensor_parallel=2)
    seen: dict[str, Any] = {"first": generated(engine)}
    seen["stop"] = reason_of_a_stop(engine, raises_at=3 if world.rank == world.size - 1 else 0)
    seen["collected"] = collected(engine, world)
    engine.load_weights(models[1].state_dict().items(), 1)
    check_weights(engine, 1, probe, model_logprobs(models[1], probe), tolerance("float32"))
    seen["second"] = generated(engine)
    return seen


if __name__ == "__main__":
    print(json.dumps(on_ranks(int(sys.argv[1]), Path(sys.argv[2]), work)))
