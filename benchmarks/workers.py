"""Several workers against one: how far their weights are apart, and who reads what of whose checkpoint.

    python -m benchmarks.workers

Ranks are real processes on this machine. The first table trains the same networks on the same rollouts; the
second writes one checkpoint with each number of ranks and reads it with each.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel, Qwen2ForSequenceClassification

from tests.support.batches import off_policy
from tests.support.faulty_os import counted_reads
from tests.support.learners import config, learner, never, rollouts
from tests.support.ranks import on_ranks
from tests.support.snapshots import INFO
from yaoki.checkpoint.io import reader
from yaoki.checkpoint.io.snapshot import PartState, Snapshot
from yaoki.checkpoint.io.store import CheckpointStore
from yaoki.checkpoint.manifest import Scope
from yaoki.checkpoint.verify import read_manifest
from yaoki.learner.network import TrainedNetwork
from yaoki.learner.shard import full_tensor, shard
from yaoki.models.builtin import tiny_config, tiny_random, tiny_tokenizer
from yaoki.ranks.torch_internals import local_tensor
from yaoki.ranks.world import World

SIZES = (1, 2, 3, 4)
Weights = dict[str, torch.Tensor]


def trained(num_steps: int) -> Callable[[World], list[Weights]]:
    """The policy's and the critic's weights after each step."""

    def work(world: World) -> list[Weights]:
        made = learner(config("train.micro_batch_tokens=20"), world=world)
        found = []
        for step in range(num_steps):
            experience = off_policy(made.with_advantages(made.score(rollouts(), never), 0.0))
            made.update(experience, step, 0.0, never)
            assert made.critic is not None
            tensors = {f"policy/{n}": t for n, t in made.policy.weights().items()}
            tensors |= {f"critic/{n}": t for n, t in made.critic.weights().items()}
            found.append({name: full_tensor(tensor).clone() for name, tensor in tensors.items()})
        return found

    return work


def parts_of(world: World) -> dict[str, PartState]:
    """Policy and critic of the tiny recipe's shape, each 3.2 MB, and moments that differ in every element."""
    settings = config()
    networks = {
        "policy": TrainedNetwork(_sharded(tiny_random(1), world), settings.policy),
        "critic": TrainedNetwork(_sharded(tiny_critic(), world), settings.critic),
    }
    for network in networks.values():
        network.make_moments()
        weights, moments = network.weights(), network.moments()
        with torch.no_grad():
            for name, moment in moments.items():
                kind, parameter = name.split("/", 1)
                moment.copy_(torch.tensor(7.0) if kind == "step" else weights[parameter] * 0.5 + len(kind))
    return {
        f"{name}.{kind}": PartState(Scope.SHARDED, tensors)
        for name, network in networks.items()
        for kind, tensors in (("params", network.weights()), ("optim", network.moments()))
    } | {"rng": PartState(Scope.PER_RANK, json={"rank": world.rank})}


def tiny_critic() -> PreTrainedModel:
    shape = tiny_config(tiny_tokenizer())
    shape.num_labels = 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return Qwen2ForSequenceClassification(shape)


def _sharded(model: PreTrainedModel, world: World) -> PreTrainedModel:
    return shard(model, world, config().train, torch.device("cpu"))


def write(directory: Path) -> Callable[[World], Weights]:
    def work(world: World) -> Weights:
        parts = parts_of(world)
        CheckpointStore(directory, ranks=world.writer).save(Snapshot(parts), step=1, info=INFO)
        return gathered(parts)

    return work


def gathered(parts: dict[str, PartState]) -> Weights:
    return {
        f"{part}/{name}": full_tensor(tensor).clone()
        for part, state in parts.items()
        for name, tensor in state.tensors.items()
    }


def read(directory: Path) -> Callable[[World], tuple[Weights, int, int]]:
    """(tensors, bytes that this rank holds, bytes of tensor files that it read)."""

    def work(world: World) -> tuple[Weights, int, int]:
        live = parts_of(world)
        for state in live.values():
            for tensor in state.tensors.values():
                local_tensor(tensor).fill_(7)
        path = directory / "step-00000001"
        targets = {name: state.tensors for name, state in live.items() if state.tensors}
        with counted_reads() as sizes:
            reader.read_into(path, read_manifest(path), targets, ranks=world.loop)
        tensors = {
            local_tensor(t).data_ptr(): local_tensor(t).nbytes
            for s in live.values()
            for t in s.tensors.values()
        }
        return gathered(live), sum(tensors.values()), sum(sizes)

    return work


def main() -> None:
    parser = argparse.ArgumentParser(description="Several workers against one.")
    parser.add_argument("--steps", type=int, default=10)
    num_steps = parser.parse_args().steps
    torch.set_num_threads(1)
    console = Console(width=130)
    with tempfile.TemporaryDirectory(prefix="workers-", dir=Path.cwd()) as name:
        scratch = Path(name)
        runs = {size: on_ranks(size, scratch, trained(num_steps)) for size in SIZES}
        table = Table("ranks", *(f"step {step + 1}" for step in range(num_steps)), "all ranks agree")
        for size in SIZES[1:]:
            gaps = [
                max(float((ours[name] - one[name]).abs().max()) for name in one)
                for ours, one in zip(runs[size][0], runs[1][0], strict=True)
            ]
            agree = all(
                torch.equal(mine[n], first[n])
                for rank in runs[size]
                for mine, first in zip(rank, runs[size][0], strict=True)
                for n in first
            )
            table.add_row(str(size), *(f"{gap:.1e}" for gap in gaps), "yes" if agree else "NO")
        console.print("largest difference of any weight from one rank's", table)

        table = Table("written by", "read by", "equal", "held, KB a rank", "read and verified, KB a rank")
        for writers in SIZES:
            directory = scratch / str(writers)
            expected = on_ranks(writers, scratch, write(directory))[0]
            for readers in SIZES:
                found = on_ranks(readers, scratch, read(directory))
                equal = all(torch.equal(tensors[n], expected[n]) for tensors, *_ in found for n in expected)
                counts = [" ".join(f"{one[i] / 1e3:.0f}" for one in found) for i in (1, 2)]
                table.add_row(str(writers), str(readers), "yes" if equal else "NO", *counts)
        console.print(table)


if __name__ == "__main__":
    main()
