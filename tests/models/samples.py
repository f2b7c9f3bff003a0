"""Texts and token ids for small models."""

import torch

from yaoki.models.builtin import Pretraining

SHORT = Pretraining(steps=2, batch_size=8)


def example(index: int) -> tuple[str, str]:
    return f"{index}+1=<think>", f"</think><answer>\\boxed{{{index + 1}}}</answer>" + "x" * (index % 3)


def no_example(index: int) -> tuple[str, str]:
    raise AssertionError(f"a random model reads no text, not even example {index}")


def some_ids(rows: int = 3, columns: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 262, (rows, columns), generator=torch.Generator().manual_seed(seed))
