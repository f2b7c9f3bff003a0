"""The critic: a backbone of its own and a bias-free value head on every hidden state.

It is a Hugging Face sequence classifier with one label, whose head is just that; so a critic is saved,
exported and loaded like any other model.
"""

import math

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel

from yaoki.models.huggingface import load_config, load_pretrained, require_complete

VALUE_HEAD = "score.weight"


def load_critic(source: str, *, trust_remote_code: bool, dropout: float, head_seed: int) -> PreTrainedModel:
    """A float32 critic whose backbone starts from `source`: a causal LM, or a critic that was exported.

    A causal LM has no value head; it gets a fresh one (see `init_value_head`).
    """
    config = load_critic_config(source, trust_remote_code=trust_remote_code, dropout=dropout)
    with torch.random.fork_rng(devices=[]):
        model, missing = load_pretrained(
            AutoModelForSequenceClassification, source, config, trust_remote_code=trust_remote_code
        )
    require_complete(source, missing - {VALUE_HEAD})
    if missing:
        init_value_head(model, head_seed)
    return model


def build_critic(source: str, *, trust_remote_code: bool, dropout: float) -> PreTrainedModel:
    """The same architecture with weights yet to be filled in."""
    config = load_critic_config(source, trust_remote_code=trust_remote_code, dropout=dropout)
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(
        config, trust_remote_code=trust_remote_code
    )
    return model


def load_critic_config(source: str, *, trust_remote_code: bool, dropout: float) -> PreTrainedConfig:
    """The architecture of a critic whose backbone is that of a model folder or hub name."""
    config = load_config(source, trust_remote_code=trust_remote_code, dropout=dropout)
    config.num_labels = 1
    return config


def init_value_head(critic: PreTrainedModel, head_seed: int) -> None:
    """Fill the head `[1, H]` from uniform(-sqrt 5, sqrt 5) / H.

    Open-Reasoner-Zero gives U(-sqrt 5, sqrt 5). Taken unscaled on H normalised hidden units of size about 1,
    first values would scatter by 1.3 sqrt(H): 41 for H = 1024, for returns that are 0 or 1. Divided by
    the fan-in they scatter by 1.3 / sqrt(H), so every critic starts close to "I do not know" and the
    wider the backbone, the closer.
    """
    head: Tensor = critic.get_parameter(VALUE_HEAD)
    bound = math.sqrt(5.0) / head.shape[1]
    generator = torch.Generator().manual_seed(head_seed & 0x7FFFFFFFFFFFFFFF)
    with torch.no_grad():
        head.copy_(torch.empty(head.shape).uniform_(-bound, bound, generator=generator))


def token_values(critic: PreTrainedModel, token_ids: Tensor) -> Tensor:
    """Values `[B, S]`: column t is the estimate before token t is emitted, from the hidden state at t - 1.

    `token_ids` `[B, S]` is right-padded and needs no mask, as attention is causal. Column 0 is zero: no
    state precedes the first token.
    """
    hidden = critic.base_model(input_ids=token_ids, use_cache=False).last_hidden_state
    values: Tensor = critic.get_submodule("score")(hidden[:, :-1]).squeeze(-1).float()
    return torch.cat([torch.zeros_like(values[:, :1]), values], dim=1)
