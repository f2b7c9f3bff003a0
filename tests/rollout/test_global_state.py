"""Whatever the body does to the process, it is as it was afterwards."""

import random
from typing import Any

import numpy as np
import pytest
import torch

from yaoki.rollout.engines.global_state import preserve_torch_globals


def settings() -> list[Any]:
    name, keys, *rest = np.random.get_state()
    assert isinstance(keys, np.ndarray)
    return [
        random.getstate(),
        [name, keys.tolist(), rest],
        torch.get_rng_state().tolist(),
        torch.set_num_threads,
        torch.get_num_threads(),
        torch.get_float32_matmul_precision(),
        torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
    ]


def disturb() -> None:
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.set_num_threads = lambda number: None
    torch.set_float32_matmul_precision("medium")
    torch.set_default_dtype(torch.bfloat16)
    torch.use_deterministic_algorithms(True)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_it_is_as_it_was(deterministic: bool, fails: bool) -> None:
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(deterministic)
    try:
        before = settings()
        try:
            with preserve_torch_globals():
                assert not torch.are_deterministic_algorithms_enabled()
                disturb()
                if fails:
                    raise KeyError("x")
        except KeyError:
            assert fails
        for found, expected in zip(settings(), before, strict=True):
            assert found == expected
    finally:
        torch.use_deterministic_algorithms(was_deterministic)
