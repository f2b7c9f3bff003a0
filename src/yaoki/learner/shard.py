"""Networks spread over the ranks: FSDP2, each parameter cut along its first dimension.

A network on one rank is left as it is, unless it computes in another precision than its weights have. Knows
nothing of what is computed with the networks.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from yaoki.config.schema import TrainConfig
from yaoki.learner.world import World, peers_expected


def shard(model: PreTrainedModel, world: World, config: TrainConfig, device: torch.device) -> PreTrainedModel:
    """Keep this rank's share of the weights, on `device`; returns the model, changed in place.

    A model in host memory moves to the device layer by layer, so that it need not fit there as a whole.

    Gradients come out as sums over the ranks, not means: losses are divided by the tokens of all ranks.
    """
    if config.activation_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if world.size == 1 and config.precision == "float32":
        nn.Module.to(model, device)  # transformers' own `to` is not typed
        return model
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    inside = MixedPrecisionPolicy(param_dtype=getattr(torch, config.precision), reduce_dtype=torch.float32)
    outside = replace(inside, output_dtype=torch.float32)
    mesh = init_device_mesh(device.type, (world.size,))
    # The critic calls its backbone and its head one by one, so each is a root of its own.
    heads = [model.get_submodule("score")] if hasattr(model, "score") else []
    roots = [model.base_model, *heads] if heads else [model]
    for module in [*_layers(model), *roots]:
        fully_shard(module, mesh=mesh, mp_policy=outside if module in roots else inside)
        assert isinstance(module, FSDPModule)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # gloo cannot scale while it sums
    return model


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, gathered from the ranks, which must all ask for it."""
    if type(tensor) in (Tensor, nn.Parameter):
        return tensor
    from torch.distributed.tensor import DTensor  # late: one rank alone does not wait for this import

    assert isinstance(tensor, DTensor)
    with peers_expected():
        return tensor.full_tensor()


def _layers(model: PreTrainedModel) -> Iterator[nn.Module]:
    """The blocks that are gathered one at a time."""
    names = set(model._no_split_modules or ())
    yield from (module for module in model.modules() if type(module).__name__ in names)
