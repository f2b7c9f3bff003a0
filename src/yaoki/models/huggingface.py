"""Hugging Face folders and hub names: loading tokenizer and config, clear errors, quiet output, export."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from yaoki.errors import NothingThereError, UsageError


@contextmanager
def quiet(*, with_bars: bool) -> Iterator[None]:
    """Let transformers print errors only, and progress bars only `with_bars` (for a download)."""
    verbosity, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if not with_bars:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()


def export_model(
    model: PreTrainedModel,
    tensors: Mapping[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    target: Path,
) -> None:
    """Load `tensors`, a full state dict, into `model` and write it with its tokenizer to `target`."""
    with torch.no_grad():
        model.load_state_dict(dict(tensors), strict=True)
    with quiet(with_bars=False):
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)


_Loaded = TypeVar("_Loaded")


def load_tokenizer(source: str, *, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or hub name. UsageError if it has no end-of-sequence token."""
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
    """The config of a model folder or hub name, with float32 weights and the given attention dropout."""
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


def load_pretrained(
    auto: Any, source: str, config: PreTrainedConfig, *, trust_remote_code: bool
) -> tuple[PreTrainedModel, set[str]]:
    """A float32 model of a transformers auto class, and the names of the weights that `source` lacks."""
    model, info = load_or_explain(
        source,
        lambda: auto.from_pretrained(
            source,
            config=config,
            dtype=torch.float32,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
        ),
    )
    return model, set(info["missing_keys"])


def require_complete(source: str, missing: Collection[str]) -> None:
    """UsageError if weights are missing: transformers would initialise them at random."""
    if missing:
        raise UsageError(
            f"{source} lacks weights: {', '.join(sorted(missing)[:5])}",
            hint="name a complete causal LM (or, for critic.init_from, a critic written by `yaoki export`)",
        )


def load_or_explain(source: str, load: Callable[[], _Loaded]) -> _Loaded:
    """Run a Hugging Face loader; a model that is missing or unreadable becomes NothingThereError."""
    try:
        with quiet(with_bars=not Path(source).is_dir()):
            return load()
    except (OSError, ValueError, SafetensorError, StrictDataclassError) as error:
        what = "folder" if Path(source).exists() else "folder or hub name"
        raise NothingThereError(
            f"no usable model at {source!r}: {error}",
            hint=f"name the {what} of a Hugging Face causal LM with safetensors weights, or builtin:tiny",
        ) from error
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise UsageError(
            f"the weights of {source} have other shapes than its config.json says",
            hint="the folder may contain files of two models: download it again",
        ) from error
