"""Whether the workers of a run can share engines as it asks, and what is said of it."""

from dataclasses import replace

import pytest
import torch

from yaoki.config.load import load_config
from yaoki.config.schema import Config
from yaoki.errors import UsageError
from yaoki.ranks.world import World, alone
from yaoki.train.device import environment, require_whole_engines


def shared_by(num_workers: int) -> Config:
    return load_config(
        None, ["data.family=arithmetic", "engine.type=vllm", f"engine.tensor_parallel={num_workers}"]
    )


def world_of(size: int) -> World:
    return replace(alone(), size=size)


@pytest.mark.parametrize(("num_workers", "size"), [(1, 1), (1, 3), (2, 2), (2, 4), (4, 128)])
def test_workers_that_make_whole_engines(num_workers: int, size: int) -> None:
    require_whole_engines(shared_by(num_workers), world_of(size))


@pytest.mark.parametrize(("num_workers", "size", "enough"), [(2, 1, 2), (2, 3, 4), (4, 6, 8), (8, 4, 8)])
def test_workers_that_do_not(num_workers: int, size: int, enough: int) -> None:
    message = f"tensor_parallel is {num_workers}, and does not divide the number of workers, {size}"
    with pytest.raises(UsageError, match=message) as caught:
        require_whole_engines(shared_by(num_workers), world_of(size))
    assert caught.value.hint is not None
    assert f"--workers {enough};" in caught.value.hint


def test_bits_depend_on_it_with_vllm_only() -> None:
    device = torch.device("cpu")
    assert environment(shared_by(2), device, world_of(2))["tensor_parallel"] == 2
    plain = load_config(None, ["data.family=arithmetic"])
    assert "tensor_parallel" not in environment(plain, device, alone())
