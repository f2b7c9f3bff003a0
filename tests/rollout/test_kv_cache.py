"""The slabs hold what transformers' own cache holds, bit for bit, whoever leaves."""

import pytest
import torch
from transformers import PreTrainedModel, Qwen2Config
from transformers.cache_utils import DynamicCache, DynamicLayer

from yaoki.rollout.engines.kv_cache import SlabLayer, new_cache


def block(rows: int, columns: int, step: int) -> torch.Tensor:
    return torch.randn(rows, 2, columns, 4, generator=torch.Generator().manual_seed(step))


@pytest.mark.parametrize("first", [1, 5, 70])
def test_a_layer_holds_what_a_plain_one_holds(first: int) -> None:
    slab, plain = SlabLayer(), DynamicLayer()
    rows = 6
    for step in range(140):
        columns = first if step == 0 else 1 + (step % 40 == 7) * 90
        keys, values = block(rows, columns, 2 * step), block(rows, columns, 2 * step + 1)
        found, expected = slab.update(keys, values), plain.update(keys, values)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
        assert slab.get_seq_length() == plain.get_seq_length()
        if step in (3, 64, 65, 100):
            chosen = torch.tensor([row for row in range(rows) if row != step % rows])
            slab.batch_select_indices(chosen)
            plain.batch_select_indices(chosen)
            rows -= 1
            assert torch.equal(slab.keys, plain.keys)
            assert torch.equal(slab.values, plain.values)


def test_a_row_may_be_named_more_than_once() -> None:
    slab, plain = SlabLayer(), DynamicLayer()
    chosen = torch.tensor([2, 0, 0, 2, 1])
    for layer in (slab, plain):
        layer.update(block(3, 5, 0), block(3, 5, 1))
        layer.batch_select_indices(chosen)
        layer.update(block(5, 1, 2), block(5, 1, 3))
    assert torch.equal(slab.keys, plain.keys)
    assert torch.equal(slab.values, plain.values)


def test_a_slab_does_not_keep_the_callers_tensors() -> None:
    slab = SlabLayer()
    keys = block(2, 3, 0)
    held, _ = slab.update(keys, keys)
    expected = held.clone()
    keys.zero_()
    assert torch.equal(held, expected)


def test_appending_does_not_copy_what_is_there() -> None:
    slab = SlabLayer()
    slab.update(block(2, 3, 0), block(2, 3, 1))
    places = {slab.update(block(2, 1, step), block(2, 1, step))[0].data_ptr() for step in range(50)}
    assert len(places) == 1


@torch.no_grad()
def test_decoding_gives_the_same_bits(learner_model: PreTrainedModel) -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 262, (5, 9), generator=generator)
    caches = [new_cache(learner_model.config), DynamicCache(config=learner_model.config)]
    for step in range(80):
        logits = [learner_model(input_ids=ids, past_key_values=cache).logits[:, -1] for cache in caches]
        assert torch.equal(*logits), f"step {step}"
        ids = logits[0].argmax(-1, keepdim=True)
        if step in (10, 40):
            chosen = torch.arange(0, len(ids), 2)
            ids = ids[chosen]
            for cache in caches:
                cache.batch_select_indices(chosen)


def test_layers_of_another_kind_stay_as_they_are() -> None:
    config = Qwen2Config(
        num_hidden_layers=4, use_sliding_window=True, sliding_window=8, max_window_layers=2, hidden_size=32,
        num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    kinds = [type(layer).__name__ for layer in new_cache(config).layers]
    assert kinds == ["SlabLayer", "SlabLayer", "DynamicSlidingWindowLayer", "DynamicSlidingWindowLayer"]
