"""A skeleton takes no memory, and once it is filled it computes what a model built as usual does."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

from tests.support.allocations import allocations
from yaoki.models.critic import build_critic
from yaoki.models.meta import materialize, on_meta
from yaoki.models.policy import build_causal_lm, load_causal_lm

CPU = torch.device("cpu")
SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}


def with_rope(kind: str, *, tied: bool) -> PreTrainedConfig:
    rope = {"rope_theta": 10_000.0, **ROPES[kind]}
    return LlamaConfig(**SIZES, tie_word_embeddings=tied, rope_parameters=rope, initializer_range=0.2)


CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    **{f"llama {kind}": partial(with_rope, kind, tied=kind == "yarn") for kind in ROPES},
    "gpt2": lambda: GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=2, n_positions=200),
    "qwen2": lambda: Qwen2Config(**SIZES, tie_word_embeddings=True),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_filled_it_is_the_model_built_as_usual(kind: str, tmp_path: Path) -> None:
    """Also on texts that are longer than the model was made for: `dynamic` then computes new frequencies."""
    CONFIGS[kind]().save_pretrained(tmp_path)
    build = partial(build_causal_lm, str(tmp_path), trust_remote_code=False, dropout=0.0)
    usual, made = build().eval(), on_meta(build).eval()
    assert made.config.to_dict() == usual.config.to_dict()
    assert all(parameter.is_meta for parameter in made.parameters())
    buffers = dict(made.named_buffers())
    assert buffers.keys() == dict(usual.named_buffers()).keys()
    for name, buffer in usual.named_buffers():
        assert torch.equal(buffers[name], buffer), name
        assert buffers[name].dtype == buffer.dtype

    materialize(made, CPU)
    made.load_state_dict(usual.state_dict())
    ids = torch.arange(100).remainder(40)[None]
    with torch.no_grad():
        for columns in (10, 100, 12):
            found, expected = (model(input_ids=ids[:, :columns]).logits for model in (made, usual))
            assert torch.equal(found, expected)


def test_a_critic_too(tmp_path: Path) -> None:
    Qwen2Config(**SIZES).save_pretrained(tmp_path)
    build = partial(build_critic, str(tmp_path), trust_remote_code=False, dropout=0.0)
    usual, made = build().eval(), materialize(on_meta(build), CPU).eval()
    made.load_state_dict(usual.state_dict())
    ids = torch.arange(30)[None]
    with torch.no_grad():
        found, expected = (model.base_model(input_ids=ids).last_hidden_state for model in (made, usual))
    assert torch.equal(found, expected)
    assert torch.equal(made.get_parameter("score.weight"), usual.get_parameter("score.weight"))


def test_nothing_is_allocated_or_drawn() -> None:
    """28 layers of 7 billion weights."""
    config = Qwen2Config(
        vocab_size=152_064,
        hidden_size=3_584,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        intermediate_size=18_944,
    )
    before = torch.get_rng_state()
    with allocations() as taken:
        made = on_meta(lambda: AutoModelForCausalLM.from_config(config))
    assert sum(parameter.numel() for parameter in made.parameters()) > 7e9
    assert taken.peak < 100_000
    assert torch.equal(torch.get_rng_state(), before)


def test_tied_weights_stay_tied(tiny: str) -> None:
    made = on_meta(partial(build_causal_lm, tiny, trust_remote_code=False, dropout=0.0))
    assert made.get_parameter("lm_head.weight") is made.get_parameter("model.embed_tokens.weight")
    materialize(made, CPU)
    assert made.get_parameter("lm_head.weight") is made.get_parameter("model.embed_tokens.weight")
    assert not any(parameter.is_meta for parameter in made.parameters())


def test_what_has_weights_keeps_them(tiny: str) -> None:
    model = load_causal_lm(tiny, trust_remote_code=False, dropout=0.0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    settled: PreTrainedModel = materialize(model, CPU)
    assert settled is model
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
