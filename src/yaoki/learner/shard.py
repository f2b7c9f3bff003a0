"""Networks sharded over the ranks: FSDP2, each parameter along its first dimension.

On one rank a network stays unsharded, unless it computes in another precision than that of its weights.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedModel

from yaoki.config.schema import TrainConfig
from yaoki.models.meta import decoder_layers, materialize
from yaoki.ranks.world import World, peers_expected


def shard(model: PreTrainedModel, world: World, config: TrainConfig, device: torch.device) -> PreTrainedModel:
    """Shard the model in place and move this rank's shard to `device`; returns the model.

    For a meta-device model, allocates only the local shard, uninitialised. Gradients are summed over the
    ranks, not averaged: losses are divided by the tokens of all ranks.
    """
    if config.activation_checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    if world.size > 1 or config.precision != "float32":
        _fully_shard(model, world, config, device)
    return materialize(model, device)


def _fully_shard(model: PreTrainedModel, world: World, config: TrainConfig, device: torch.device) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    inside = MixedPrecisionPolicy(param_dtype=getattr(torch, config.precision), reduce_dtype=torch.float32)
    outside = replace(inside, output_dtype=torch.float32)
    mesh = init_device_mesh(device.type, (world.size,))
    # The critic calls its backbone and its head separately, so each is a root of its own.
    heads = [model.get_submodule("score")] if hasattr(model, "score") else []
    roots = [model.base_model, *heads] if heads else [model]
    for module in [*decoder_layers(model), *roots]:
        fully_shard(module, mesh=mesh, mp_policy=outside if module in roots else inside)
        assert isinstance(module, FSDPModule)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # gloo cannot scale in a reduction


@torch.no_grad()
def scatter_weights(model: PreTrainedModel, given: PreTrainedModel | None, world: World) -> None:
    """Copy the weights of a full model on rank 0 into the shard of every rank; a collective.

    given: on rank 0, in host memory, moved to the meta device on return; None on the others, which receive
    only their own rows.
    """
    weights = None if given is None else given.state_dict()
    for name, tensor in model.state_dict().items():
        own: Tensor = getattr(tensor, "_local_tensor", tensor)
        with peers_expected():
            if weights is None:
                own.copy_(_received(own))
            else:
                rows = _rows_of_ranks(weights[name], world.size, is_cut=own is not tensor)
                _send(rows)
                own.copy_(rows[0])
    if given is not None:
        given.to_empty(device="meta")  # frees its memory now, not when garbage is collected


def _rows_of_ranks(tensor: Tensor, num_ranks: int, *, is_cut: bool) -> Sequence[Tensor]:
    """Split as FSDP2 does it: the last ranks have fewer rows, or none."""
    if not is_cut:
        return [tensor] * num_ranks
    rows = tensor.chunk(num_ranks)
    return [*rows, *[tensor[:0]] * (num_ranks - len(rows))]


def _send(rows: Sequence[Tensor]) -> None:
    """Send each of the other ranks its own rows, from host memory to host memory."""
    sent = [dist.isend(part, rank) for rank, part in enumerate(rows) if rank and part.numel()]
    for work in sent:
        assert work is not None
        work.wait()


def _received(own: Tensor) -> Tensor:
    rows = torch.empty_like(own, device="cpu")
    if rows.numel():
        dist.recv(rows, 0)
    return rows


def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor, gathered from all ranks; a collective."""
    if type(tensor) in (Tensor, nn.Parameter):
        return tensor
    from torch.distributed.tensor import DTensor  # a slow import that one rank alone does not need

    assert isinstance(tensor, DTensor)
    with peers_expected():
        return tensor.full_tensor()
