"""Weights dealt out from the first rank: every rank has its rows, to the bit, and never a whole tensor."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM, Qwen2ForSequenceClassification

from tests.support.allocations import allocations
from tests.support.learners import config
from tests.support.ranks import on_ranks
from yaoki.learner.network import TrainedNetwork
from yaoki.learner.shard import full_tensor, scatter_weights, shard
from yaoki.models.critic import init_value_head, token_values
from yaoki.models.meta import on_meta
from yaoki.ranks.world import World, alone

CPU = torch.device("cpu")
KINDS = ("tied", "untied", "critic")
ROW_BYTES = 4 * 32


def build(kind: str) -> PreTrainedModel:
    """Numbers of rows that neither 2 nor 3 divides; the critic's head has but one."""
    shape = Qwen2Config(
        vocab_size=1_003,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=49,
        max_position_embeddings=64,
        tie_word_embeddings=kind == "tied",
        num_labels=1,
    )
    return Qwen2ForSequenceClassification(shape) if kind == "critic" else Qwen2ForCausalLM(shape)


def given(kind: str) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        made = build(kind)
    if kind == "critic":
        init_value_head(made, 3)
    return made


def filled(kind: str, world: World, *overrides: str) -> PreTrainedModel:
    made = shard(on_meta(lambda: build(kind)), world, config(*overrides).train, CPU)
    scatter_weights(made, given(kind) if world.is_first else None, world)
    return made


def gathered(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: full_tensor(tensor).clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_gathered_they_are_what_the_first_rank_gave(
    kind: str, precision: str, size: int, tmp_path: Path
) -> None:
    expected = given(kind).state_dict()
    ranks = on_ranks(size, tmp_path, lambda w: gathered(filled(kind, w, f"train.precision={precision}")))
    for found in ranks:
        assert found.keys() == expected.keys()
        for name, tensor in found.items():
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_one_rank_alone(kind: str) -> None:
    found = filled(kind, alone()).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in given(kind).state_dict().items())


def learnt(model: PreTrainedModel, kind: str) -> dict[str, torch.Tensor]:
    """Weights and moments after two steps."""
    settings = config()
    network = TrainedNetwork(model, settings.critic if kind == "critic" else settings.policy)
    ids = torch.arange(60).reshape(3, 20)
    for _ in range(2):
        if kind == "critic":
            token_values(model, ids).square().sum().backward()
        else:
            model(input_ids=ids).logits.square().mean().backward()
        network.clip_gradients()
        network.step()
    return {name: full_tensor(t).clone() for name, t in (network.weights() | network.moments()).items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_it_learns_as_a_model_that_was_whole_and_then_cut(kind: str, precision: str, tmp_path: Path) -> None:
    """Ties, frequencies and the order of parameters are the same too, or the bits would not be."""

    def both(world: World) -> Any:
        settings = config(f"train.precision={precision}")
        cut = shard(given(kind), world, settings.train, CPU)
        return learnt(cut, kind), learnt(filled(kind, world, f"train.precision={precision}"), kind)

    for usual, found in on_ranks(3, tmp_path, both):
        assert list(found) == list(usual)
        assert all(torch.equal(found[name], usual[name]) for name in usual)


@pytest.mark.parametrize("kind", KINDS)
def test_no_rank_takes_memory_for_a_whole_tensor(kind: str, tmp_path: Path) -> None:
    """Not even the first, beyond what it gives."""
    model = given(kind)

    def taken(world: World) -> tuple[int, int]:
        made = on_meta(lambda: build(kind))
        with allocations() as found:
            scatter_weights(shard(made, world, config().train, CPU), model if world.is_first else None, world)
        return found.largest, found.peak

    sizes = [4 * tensor.numel() for tensor in model.parameters()]
    for largest, peak in on_ranks(3, tmp_path, taken):
        assert 0 < largest <= max(sizes) / 3 + ROW_BYTES
        assert peak < 0.8 * sum(
            sizes
        )  # a third; and once more of single tensors, while they are padded or come


def test_what_was_given_takes_no_memory_afterwards() -> None:
    whole_model = given("untied")
    scatter_weights(given("untied"), whole_model, alone())
    assert all(parameter.is_meta for parameter in whole_model.parameters())
