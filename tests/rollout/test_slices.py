"""Which models vLLM can cut for how many workers; said before anything starts. vLLM itself is not needed."""

import pytest
from transformers import PreTrainedConfig

from yaoki.errors import UsageError
from yaoki.rollout.engines.vllm_weights import require_even_slices


def shape(num_heads: int, num_key_heads: int | None, inner_size: int) -> PreTrainedConfig:
    config = PreTrainedConfig()
    config.num_attention_heads = num_heads
    config.num_key_value_heads = num_key_heads
    config.intermediate_size = inner_size
    return config


@pytest.mark.parametrize(
    ("num_heads", "num_key_heads", "inner_size", "num_slices"),
    [(14, 2, 4864, 2), (8, 2, 64, 4), (8, None, 64, 8), (40, 8, 27648, 4), (14, 2, 4864, 1)],
    ids=["halves", "key heads repeated", "no key heads", "32B", "whole"],
)
def test_even_slices(num_heads: int, num_key_heads: int | None, inner_size: int, num_slices: int) -> None:
    require_even_slices(shape(num_heads, num_key_heads, inner_size), num_slices)


@pytest.mark.parametrize(
    ("num_heads", "num_key_heads", "inner_size", "num_slices"),
    [(14, 2, 4864, 4), (8, 8, 63, 2), (12, 3, 64, 2), (8, None, 64, 3)],
    ids=["heads", "inner units", "key heads", "none of them"],
)
def test_uneven_slices_are_refused(
    num_heads: int, num_key_heads: int | None, inner_size: int, num_slices: int
) -> None:
    with pytest.raises(UsageError, match=f"{num_slices} workers cannot share .* {num_heads} attention heads"):
        require_even_slices(shape(num_heads, num_key_heads, inner_size), num_slices)
