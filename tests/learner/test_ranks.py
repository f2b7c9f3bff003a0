"""Several ranks learn what one learns: the same within rounding, and the same world to the bit."""

from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.support.batches import GRPO, KL_LOSS, SMALL, chosen, off_policy, scored
from tests.support.learners import config, learner, never, rollouts
from tests.support.ranks import on_ranks
from yaoki.learner.shard import full_tensor
from yaoki.ranks.world import World, alone

NUM_STEPS = 2


def train(world: World, *overrides: str) -> dict[str, torch.Tensor]:
    """All weights, gathered, after some steps off the policy; and what the last update said."""
    made = learner(config(*overrides), world=world)
    for step in range(1, NUM_STEPS + 1):
        experience = off_policy(made.with_advantages(made.score(rollouts(), never), 0.3))
        stats = made.update(experience, step, 0.3, never)
    found = {f"policy/{name}": tensor.clone() for name, tensor in made.weights()}
    if made.critic is not None:
        found |= {f"critic/{n}": full_tensor(t).clone() for n, t in made.critic.weights().items()}
    assert stats.policy is not None
    found["stats"] = torch.tensor([stats.policy.loss, stats.policy.entropy, stats.policy.grad_norm])
    return found


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


KINDS: dict[str, tuple[str, ...]] = {
    "ppo": (SMALL,),
    "grpo with a reference": (*GRPO, *KL_LOSS, SMALL),
    "activation checkpointing": ("train.activation_checkpointing=true", "critic.num_mini_batches=2"),
}


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [("ppo", (2, 4)), ("grpo with a reference", (2, 3)), ("activation checkpointing", (2,))],
)
def test_several_ranks_learn_what_one_learns(kind: str, sizes: tuple[int, ...], tmp_path: Path) -> None:
    """4 groups on 3 and 4 ranks, mini-batches of one or two rows: shares are uneven, often empty."""
    expected = train(alone(), *KINDS[kind])
    start = {f"policy/{name}": tensor.clone() for name, tensor in learner(config()).weights()}
    assert max(float((expected[n] - start[n]).abs().max()) for n in start) > 1e-3  # something was learnt
    for size in sizes:
        for found in on_ranks(size, tmp_path, lambda world: train(world, *KINDS[kind])):
            assert largest_difference(found, expected) < 2e-5


def test_activations_computed_again_give_the_same_bits() -> None:
    kept, again = (train(alone(), SMALL, f"train.activation_checkpointing={on}") for on in ("false", "true"))
    assert largest_difference(kept, again) == 0.0


def test_the_same_world_gives_the_same_bits(tmp_path: Path) -> None:
    runs = [on_ranks(2, tmp_path, lambda world: train(world, SMALL)) for _ in range(2)]
    for found in (runs[0][1], *runs[1]):
        assert largest_difference(found, runs[0][0]) == 0.0


def test_scores_are_those_of_one_rank_on_all(tmp_path: Path) -> None:
    def score(world: World) -> Any:
        return scored(learner(config(SMALL), world=world))

    expected = score(alone())
    for found in on_ranks(3, tmp_path, score):
        for name in ("old_logprobs", "values", "advantages", "returns"):
            torch.testing.assert_close(
                chosen(getattr(found, name), expected),
                chosen(getattr(expected, name), expected),
                rtol=0,
                atol=2e-6,
            )


def test_each_rank_holds_its_share_only(tmp_path: Path) -> None:
    def count(world: World) -> int:
        made = learner(config(), world=world)
        return sum(t._local_tensor.numel() for t in made.policy.weights().values())  # type: ignore[attr-defined]

    whole_size = sum(t.numel() for t in learner(config()).policy.weights().values())
    shares = on_ranks(4, tmp_path, count)
    assert sum(shares) == whole_size
    assert max(shares) < 0.3 * whole_size


def test_bfloat16_computes_coarsely_and_keeps_float32(tmp_path: Path) -> None:
    exact = train(alone(), SMALL)
    for size in (1, 2):
        (found, *_) = on_ranks(size, tmp_path, lambda world: train(world, SMALL, "train.precision=bfloat16"))
        assert {tensor.dtype for tensor in found.values()} == {torch.float32}
        assert 1e-6 < largest_difference(found, exact) < 0.1


def test_checkpoint_loop_and_training_do_not_share_a_group(tmp_path: Path) -> None:
    """The writer of one rank begins to talk long before the other's does; all else goes on meanwhile."""

    def talk(world: World) -> list[bytes]:
        said: list[bytes] = []
        writer = Thread(target=lambda: said.extend(world.writer.gather(b"w" * (world.rank + 1))))
        if world.rank == 0:
            writer.start()
        for number in range(20):
            total = torch.full((1000,), float(world.rank))
            dist.all_reduce(total)
            assert torch.equal(total, torch.ones(1000))
            assert world.loop.gather(b"%d" % (number + world.rank)) == [b"%d" % number, b"%d" % (number + 1)]
        if world.rank == 1:
            writer.start()
        writer.join()
        return said

    assert on_ranks(2, tmp_path, talk) == [[b"w", b"ww"]] * 2
