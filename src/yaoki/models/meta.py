"""Models on the meta device, where weights take no memory until they are allocated on a real device.

Apart from the loaders, because sharding uses this and loads nothing.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def on_meta(build: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """The model that `build` makes, with its parameters on the meta device.

    Buffers that are computed and not saved, such as rotary frequencies, are in host memory with their usual
    values, computed by the model's own initialisation.
    """
    with torch.device("meta"):
        model = build()
    for name, buffer in list(model.named_non_persistent_buffers()):
        module, _, own_name = name.rpartition(".")
        setattr(model.get_submodule(module), own_name, torch.empty_like(buffer, device="cpu"))
    model.initialize_weights()  # computes and draws nothing for tensors on the meta device
    return model


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The layers of a model, which FSDP shards and gathers one at a time."""
    names = set(model._no_split_modules or ())
    return [module for module in model.modules() if type(module).__name__ in names]


def materialize(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """Move the model to a device, in place; tensors on the meta device are allocated, uninitialised."""

    def materialized(tensor: Tensor) -> Tensor:
        return torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.to(device)

    model._apply(materialized)
    model.tie_weights()  # tied weights were allocated separately
    return model
