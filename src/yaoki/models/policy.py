"""Causal language models from Hugging Face: load them, build them empty, and ask for token log-probabilities.

Weights come as safetensors only. Knows nothing of optimizers, rollouts or run directories.
"""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from yaoki.errors import NothingThereError, UsageError
from yaoki.models.quiet import quiet

_Loaded = TypeVar("_Loaded")


def load_causal_lm(source: str, *, trust_remote_code: bool, dropout: float) -> PreTrainedModel:
    """A float32 causal LM with its weights, from a folder or a hub name.

    Raises NothingThereError when there is no such model, UsageError when its weights are not those that its
    architecture has.
    """
    config = load_config(source, trust_remote_code=trust_remote_code, dropout=dropout)
    loaded: Any = load_or_explain(
        source,
        lambda: AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            dtype=torch.float32,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
        ),
    )
    model: PreTrainedModel
    model, info = loaded
    require_complete(source, info["missing_keys"])
    _require_tied(source, model)
    return model


def build_causal_lm(source: str, *, trust_remote_code: bool, dropout: float) -> PreTrainedModel:
    """The same architecture with weights yet to be filled in."""
    config = load_config(source, trust_remote_code=trust_remote_code, dropout=dropout)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return model


def load_tokenizer(source: str, *, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """The tokenizer that belongs to a model folder or hub name; it must know an end-of-sequence token."""
    tokenizer: PreTrainedTokenizerBase = load_or_explain(
        source, lambda: AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    )
    if tokenizer.eos_token_id is None:
        raise UsageError(
            f"the tokenizer of {source} has no end-of-sequence token",
            hint="set eos_token in its tokenizer_config.json",
        )
    return tokenizer


def load_config(source: str, *, trust_remote_code: bool, dropout: float) -> PreTrainedConfig:
    """The architecture of a model folder or hub name, for float32 weights, with its attention dropout set."""
    config: PreTrainedConfig = load_or_explain(
        source, lambda: AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    )
    config.dtype = torch.float32
    if hasattr(config, "attention_dropout"):
        config.attention_dropout = dropout
    elif dropout > 0:
        raise UsageError(
            f"{source} ({config.model_type}) has no attention_dropout, but dropout is {dropout}",
            hint="set policy.dropout=0 and critic.dropout=0",
        )
    return config


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


def require_complete(source: str, missing: Collection[str]) -> None:
    """UsageError if there are missing weights: transformers would make them up at random."""
    if missing:
        raise UsageError(
            f"{source} lacks weights: {', '.join(sorted(missing)[:5])}",
            hint="give a whole causal LM (or, for critic.init_from, a critic written by `yaoki export`)",
        )


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


def load_or_explain(source: str, load: Callable[[], _Loaded]) -> _Loaded:
    """Run a Hugging Face loader; what it cannot find or read becomes NothingThereError."""
    try:
        with quiet(with_bars=not Path(source).is_dir()):
            return load()
    except (OSError, ValueError, SafetensorError) as error:
        what = "folder" if Path(source).exists() else "folder or hub name"
        raise NothingThereError(
            f"no usable model at {source!r}: {error}",
            hint=f"give the {what} of a Hugging Face causal LM with safetensors weights, or builtin:tiny",
        ) from error
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise UsageError(
            f"the weights of {source} have other shapes than its config.json says",
            hint="it holds files of two models; get it again",
        ) from error
