"""Models and engines for these tests."""

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Qwen2ForCausalLM

from yaoki.models.builtin import tiny_config, tiny_tokenizer
from yaoki.rollout.engine import Sampling
from yaoki.rollout.engines.transformers import TransformersEngine
from yaoki.rollout.engines.vllm import VllmEngine
from yaoki.rollout.engines.vllm_weights import VllmOptions

STOP_OFTEN = tuple("aeiou0123")


def wide_headed(seed_value: int) -> Qwen2ForCausalLM:
    """The tiny model with attention heads of a width that vLLM's CPU kernels know; random weights."""
    config = tiny_config(tiny_tokenizer())
    config.num_attention_heads = config.num_key_value_heads = 4
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_value)
        return Qwen2ForCausalLM(config).eval().requires_grad_(False)


def vllm_engine(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sampling: Sampling,
    *,
    in_place: bool = False,
    precision: str = "float32",
    tensor_parallel: int = 1,
) -> VllmEngine:
    """An engine with the model's weights in it, as version 0."""
    options = VllmOptions(precision, 256, 64, 0.1, in_place, tensor_parallel)
    engine = VllmEngine(model.config, tokenizer, sampling, options)
    engine.load_weights(model.state_dict().items(), 0)
    return engine


def transformers_engine(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sampling: Sampling
) -> TransformersEngine:
    engine = TransformersEngine(wide_headed(99), tokenizer, sampling)
    engine.load_weights(model.state_dict().items(), 0)
    return engine
