"""What tests of engines ask for."""

from transformers import PreTrainedTokenizerBase

from yaoki.rollout.engine import Request
from yaoki.seeding import Purpose, seed

PROMPTS = ["1+1=", "12+34-5=<think>", "x", "9" * 20]


def requests(
    tokenizer: PreTrainedTokenizerBase, prompts: list[str] = PROMPTS, samples: int = 4, run_seed: int = 0
) -> list[Request]:
    return [
        Request(tuple(tokenizer(text)["input_ids"]), seed(run_seed, Purpose.ROLLOUT, 0, index, sample))
        for index, text in enumerate(prompts)
        for sample in range(samples)
    ]


def no_poll() -> None:
    pass
