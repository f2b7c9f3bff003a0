"""Tokens per second of TransformersEngine and of `model.generate`, side by side: same model, same prompts.

Three jobs, each with 128 completions of the built-in base model (about a million parameters):

- `tasks`: what training does. Sample until `</answer>`, with the log-probability of every sampled token;
  `generate` is called as one has to call it for that: stop_strings, tokenizer, output_logits.
- `fixed`: 64 tokens each, nothing stops, and `generate` is spared the log-probabilities.
- `mixed`: stop at the first `7`, so that half of the rows are short and some go on to the limit; `generate`
  is spared the log-probabilities here too.

Rounds are interleaved in random order, so that a busy machine disturbs both alike. Only tokens of the
completions count, not padding after their end.
"""

import argparse
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from yaoki.config.load import load_config
from yaoki.data.generated.families import family, training_task
from yaoki.data.templates import load_template
from yaoki.models.determinism import configure
from yaoki.models.huggingface import load_tokenizer
from yaoki.models.policy import load_causal_lm
from yaoki.rollout.engine import Request, Sampling
from yaoki.rollout.engines.stopping import StopCondition
from yaoki.rollout.engines.transformers import TransformersEngine
from yaoki.seeding import Purpose, seed
from yaoki.train.console import Console
from yaoki.train.networks import resolve_source

RECIPE = Path(__file__).parents[1] / "recipes" / "tiny.toml"
BATCH_SIZE = 128
GROUP_SIZE = 8


@dataclass(frozen=True)
class Job:
    """One way of sampling."""

    name: str
    max_new_tokens: int
    stop: tuple[str, ...]
    with_logprobs: bool
    """Whether `generate` has to give log-probabilities; our engine always does."""


JOBS = (
    Job("tasks", 32, ("</answer>",), with_logprobs=True),
    Job("fixed", 64, (), with_logprobs=False),
    Job("mixed", 256, ("7",), with_logprobs=False),
)


class Contest:
    """The model and its prompts; knows both ways to sample."""

    def __init__(self) -> None:
        config = load_config(RECIPE)
        with Console(0) as console:
            source = resolve_source(config.policy.init_from, config, console, lambda: None)
        self.model = load_causal_lm(source, trust_remote_code=False, dropout=0.0).eval()
        self.tokenizer = load_tokenizer(source, trust_remote_code=False)
        template, tasks = load_template(config.data.template), family(config.data.family)
        texts = [template.render(training_task(tasks, 0, 0, row // GROUP_SIZE)) for row in range(BATCH_SIZE)]
        self.prompts = [tuple(self.tokenizer(text)["input_ids"]) for text in texts]

    def engine(self, job: Job) -> Callable[[int], int]:
        """A function from the number of a round to the number of tokens that our engine sampled."""
        sampling = Sampling(1.0, 1.0, job.max_new_tokens, job.stop)
        engine = TransformersEngine(self.model, self.tokenizer, sampling)
        engine.load_weights(list(self.model.state_dict().items()), 0)

        def sample(number: int) -> int:
            requests = [
                Request(prompt, seed(0, Purpose.ROLLOUT, number, row))
                for row, prompt in enumerate(self.prompts)
            ]
            completions = engine.generate(requests, lambda: None)
            return sum(len(completion.token_ids) for completion in completions)

        return sample

    def generate(self, job: Job) -> Callable[[int], int]:
        """The same for `model.generate`; the time of counting is part of it, and next to nothing."""
        stop = StopCondition(self.tokenizer, job.stop)
        options = _generate_options(job, self.tokenizer)
        ids = torch.tensor(self.prompts)

        @torch.inference_mode()
        def sample(number: int) -> int:
            torch.manual_seed(number)
            output: Any = self.model.generate(ids, attention_mask=torch.ones_like(ids), **options)
            completions = output.sequences[:, ids.shape[1] :]
            if job.with_logprobs:
                logprobs = torch.stack(output.logits, dim=1).log_softmax(-1)
                logprobs.gather(-1, completions[:, :, None]).tolist()
            return sum(_num_real_tokens(row, stop) for row in completions.tolist())

        return sample


def _generate_options(job: Job, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    options: dict[str, Any] = {
        "do_sample": True,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "max_new_tokens": job.max_new_tokens,
        "pad_token_id": tokenizer.pad_token_id,
        "return_dict_in_generate": True,
        "output_logits": job.with_logprobs,
    }
    if job.stop:
        options |= {"stop_strings": list(job.stop), "tokenizer": tokenizer}
    return options


def _num_real_tokens(token_ids: Sequence[int], stop: StopCondition) -> int:
    """Up to the token that ends the completion; what follows is padding."""
    ends = (end for end in range(1, len(token_ids) + 1) if stop.check(token_ids[:end]) is not None)
    return next(ends, len(token_ids))


def measure(contest: Contest, num_rounds: int) -> list[dict[str, Any]]:
    """Median tokens per second of both for each job, over `num_rounds` rounds after one to warm up."""
    runners = [
        (job, name, make(job))
        for job in JOBS
        for name, make in (("engine", contest.engine), ("generate", contest.generate))
    ]
    speeds: dict[tuple[str, str], list[float]] = {(job.name, name): [] for job, name, _ in runners}
    lengths: dict[tuple[str, str], list[float]] = {place: [] for place in speeds}
    order = random.Random(0)
    for number in range(num_rounds + 1):
        order.shuffle(runners)
        for job, name, sample in runners:
            start = perf_counter()
            num_tokens = sample(number)
            seconds = perf_counter() - start
            if number > 0:
                speeds[job.name, name].append(num_tokens / seconds)
                lengths[job.name, name].append(num_tokens / BATCH_SIZE)
    return [
        {
            "job": job.name,
            "engine_tokens_per_s": round(median(speeds[job.name, "engine"])),
            "generate_tokens_per_s": round(median(speeds[job.name, "generate"])),
            "ratio": round(median(speeds[job.name, "engine"]) / median(speeds[job.name, "generate"]), 2),
            "mean_length": round(median(lengths[job.name, "engine"]), 1),
        }
        for job in JOBS
    ]


def num_parameters(model: PreTrainedModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--rounds", type=int, default=9, help="measured rounds (default 9)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    configure(deterministic=True, num_threads=arguments.threads)
    contest = Contest()
    rows = measure(contest, arguments.rounds)
    if arguments.json:
        facts = {"num_parameters": num_parameters(contest.model), "batch_size": BATCH_SIZE}
        facts |= {"threads": torch.get_num_threads(), "rounds": arguments.rounds}
        print(json.dumps(facts | {"jobs": rows}, indent=2))
        return
    print(
        f"{num_parameters(contest.model):,} parameters, batch {BATCH_SIZE}, {arguments.rounds} rounds, ",
        end="",
    )
    print(f"{torch.get_num_threads()} threads; medians in tokens/s")
    print(f"{'job':<8}{'mean length':>13}{'engine':>10}{'generate':>10}{'ratio':>8}")
    for row in rows:
        print(
            f"{row['job']:<8}{row['mean_length']:>13}{row['engine_tokens_per_s']:>10}"
            f"{row['generate_tokens_per_s']:>10}{row['ratio']:>8.2f}"
        )


if __name__ == "__main__":
    main()
