"""Causal language models from Hugging Face: load them, build them empty, and ask for token log-probabilities.

Weights are read from safetensors only.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from yaoki.errors import UsageError
from yaoki.models.huggingface import load_config, load_pretrained, require_complete


def load_causal_lm(source: str, *, trust_remote_code: bool, dropout: float) -> PreTrainedModel:
    """A float32 causal LM with its weights, from a folder or a hub name.

    Raises NothingThereError when there is no such model, UsageError when its weights are not those that its
    architecture has.
    """
    config = load_config(source, trust_remote_code=trust_remote_code, dropout=dropout)
    model, missing = load_pretrained(
        AutoModelForCausalLM, source, config, trust_remote_code=trust_remote_code
    )
    require_complete(source, missing)
    _require_tied(source, model)
    return model


def build_causal_lm(source: str, *, trust_remote_code: bool, dropout: float) -> PreTrainedModel:
    """The same architecture with weights yet to be filled in."""
    config = load_config(source, trust_remote_code=trust_remote_code, dropout=dropout)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return model


def token_logprobs(
    model: PreTrainedModel, token_ids: Tensor, first: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probabilities `[B, S - first]` of tokens first.., and their logits `[B, S - first, V]`.

    `token_ids` `[B, S]` is right-padded and needs no mask: attention is causal, so no real token sees
    the padding after it. Logits are in float32 and already divided by the temperature.
    """
    num_kept = token_ids.shape[1] - first + 1
    output: Any = model(input_ids=token_ids, use_cache=False, logits_to_keep=num_kept)
    logits: Tensor = output.logits[:, :-1].float() / temperature
    chosen = logits.gather(-1, token_ids[:, first:, None]).squeeze(-1)
    return chosen - logits.logsumexp(-1), logits


def _require_tied(source: str, model: PreTrainedModel) -> None:
    """UsageError if weights that should be one are different: transformers would leave them apart."""
    apart = (
        model.get_expanded_tied_weights_keys(all_submodels=True).keys() - model.all_tied_weights_keys.keys()
    )
    if apart:
        raise UsageError(
            f"{source} has other weights in {', '.join(sorted(apart))} than in the embeddings, though its "
            "config.json says that they are tied",
            hint='if they should differ, set "tie_word_embeddings": false in its config.json',
        )


@torch.no_grad()
def model_logprobs(model: PreTrainedModel, token_ids: Sequence[int]) -> list[float]:
    """What RolloutEngine.logprobs gives, by one forward pass; with a sharded model all ranks must ask.

    The model is left in evaluation mode.
    """
    ids = torch.tensor([list(token_ids)], device=model.device)
    logprobs, _ = token_logprobs(model.eval(), ids, 1, 1.0)
    return [float(logprob) for logprob in logprobs[0]]
