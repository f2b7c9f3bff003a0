"""Models without weights: a skeleton first, memory for its weights where and when they are wanted.

Knows nothing of where weights come from, nor of how a model is spread.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def on_meta(build: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """What `build` makes, with its weights on the meta device, where they take no memory.

    What a model computes for itself and does not save, such as rotary frequencies, is there in host memory,
    with the values that it has in a model built as usual: the model's own initialisation computes it.
    """
    with torch.device("meta"):
        model = build()
    for name, buffer in list(model.named_non_persistent_buffers()):
        module, _, own_name = name.rpartition(".")
        setattr(model.get_submodule(module), own_name, torch.empty_like(buffer, device="cpu"))
    model.initialize_weights()  # of tensors on the meta device nothing is computed, nor drawn
    return model


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The layers of a model, which FSDP shards and gathers one at a time."""
    names = set(model._no_split_modules or ())
    return [module for module in model.modules() if type(module).__name__ in names]


def materialize(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """Put the model on a device, in place; there its weights, if it is a skeleton, hold garbage."""

    def settled(tensor: Tensor) -> Tensor:
        return torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.to(device)

    model._apply(settled)
    model.tie_weights()  # each of two tied weights was given memory of its own
    return model
