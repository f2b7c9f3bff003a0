"""Hugging Face folders out of trained tensors. Knows nothing of checkpoints or runs."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from yaoki.models.quiet import quiet


def export_model(
    model: PreTrainedModel,
    tensors: Mapping[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    target: Path,
) -> None:
    """Fill `model` with `tensors` (its whole state dict) and write it with its tokenizer into `target`."""
    with torch.no_grad():
        model.load_state_dict(dict(tensors), strict=True)
    with quiet(with_bars=False):
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
