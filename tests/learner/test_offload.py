"""Weights and moments may move between two steps: nothing computed changes, and nothing captured."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.support.batches import KL_LOSS, SMALL, scored
from tests.support.learners import config, learner, never
from tests.support.ranks import on_ranks
from yaoki.learner.learner import Learner
from yaoki.learner.shard import full_tensor
from yaoki.ranks.torch_internals import local_tensor
from yaoki.ranks.world import World


def step(made: Learner, number: int) -> None:
    made.update(scored(made, 0.3), number, 0.3, never)


def move(made: Learner) -> None:
    """As to another device and back: every tensor gets other memory."""
    assert made.critic is not None
    for network in (made.policy, made.critic):
        network.move(torch.clone)


def trained(is_moved: bool) -> Callable[[World], dict[str, torch.Tensor]]:
    def work(world: World) -> dict[str, torch.Tensor]:
        made = learner(config(*KL_LOSS, SMALL, "train.offload=true"), world=world)
        for number in (1, 2):
            step(made, number)
            if is_moved:
                before = made.policy.weights() | made.policy.moments()
                kept = {name: (local_tensor(t).clone(), t._version) for name, t in before.items()}
                move(made)
                for name, tensor in (made.policy.weights() | made.policy.moments()).items():
                    is_number = name.startswith("step/")  # stays where it is
                    assert (
                        is_number or local_tensor(tensor).data_ptr() != local_tensor(before[name]).data_ptr()
                    )
                    assert torch.equal(local_tensor(tensor), kept[name][0])
                for name, tensor in before.items():  # what a snapshot refers to
                    assert torch.equal(local_tensor(tensor), kept[name][0])
                    assert tensor._version == kept[name][1]
            made.offload()
            made.onload()
        return {n: full_tensor(t).clone() for n, t in (made.policy.weights() | made.policy.moments()).items()}

    return work


@pytest.mark.parametrize("size", [1, 2])
def test_moving_changes_nothing(size: int, tmp_path: Path) -> None:
    stayed = on_ranks(size, tmp_path, trained(is_moved=False))[0]
    moved = on_ranks(size, tmp_path, trained(is_moved=True))[0]
    assert stayed.keys() == moved.keys()
    for name in stayed:
        assert torch.equal(stayed[name], moved[name]), name
