"""The generators of the frameworks: captured as JSON, put back exactly."""

import json
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from yaoki.errors import CorruptCheckpointError
from yaoki.train import rng


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    state = rng.capture()
    yield
    rng.restore(state)


def draws() -> list[Any]:
    """From every distribution that keeps something back for the next call, too."""
    return [
        random.random(),
        random.gauss(0, 1),
        float(np.random.rand()),
        float(np.random.standard_normal()),
        torch.rand(3).tolist(),
        torch.randn(17).tolist(),
        float(torch.nn.functional.dropout(torch.ones(64), 0.5).sum()),
    ]


@pytest.mark.parametrize("num_before", [0, 1, 2])
def test_captured_and_restored(num_before: int) -> None:
    rng.seed_generators(1)
    for _ in range(num_before):
        draws()
    saved = json.loads(json.dumps(rng.capture()))
    expected = draws()
    draws()

    rng.restore(saved)

    assert rng.capture() == saved
    assert draws() == expected


def test_capturing_draws_nothing() -> None:
    rng.seed_generators(2)
    expected = draws()
    rng.seed_generators(2)
    rng.capture()
    assert draws() == expected


def test_seeds_differ_and_may_have_64_bits() -> None:
    found = []
    for value in (0, 1, 2**64 - 1):
        rng.seed_generators(value)
        found.append(draws())
    rng.seed_generators(1)
    assert draws() == found[1]
    assert found[0] != found[1] != found[2]


@pytest.mark.parametrize("part", ["python", "numpy", "torch", "cuda"])
def test_another_form_is_refused_before_anything_is_set(part: str) -> None:
    saved: dict[str, Any] = rng.capture()  # type: ignore[assignment]
    draws()
    now = rng.capture()
    for damaged in ({k: v for k, v in saved.items() if k != part}, saved | {part: 5}):
        with pytest.raises(CorruptCheckpointError, match="generators"):
            rng.restore(damaged)
    assert rng.capture() == now
