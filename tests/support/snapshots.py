"""Small snapshots with every kind of part, and their comparison bit for bit."""

from collections.abc import Mapping

import torch

from yaoki.checkpoint.io.save import SaveInfo
from yaoki.checkpoint.io.snapshot import PartState, Snapshot
from yaoki.checkpoint.manifest import Scope

INFO = SaveInfo(
    run_id="run-7",
    attempt=2,
    parent="step-00000001",
    config_digest="c" * 32,
    dataset_digest="d" * 32,
    environment={"torch": torch.__version__, "num_threads": 1, "deterministic": True, "cuda": None},
)


def small_snapshot(step: int) -> Snapshot:
    """A policy with tied tensors, a per-rank generator, and a part of JSON only; all depend on `step`."""
    generator = torch.Generator().manual_seed(step)
    embedding = torch.randn(5, 3, generator=generator)
    return Snapshot(
        {
            "policy.params": PartState(
                Scope.SHARDED,
                {
                    "embed.weight": embedding,
                    "norm.weight": torch.randn(3, generator=generator).bfloat16(),
                    "lm_head.weight": embedding,
                },
            ),
            "rng": PartState(Scope.PER_RANK, {"torch": generator.get_state()}, json={"python": [3, [1, 2]]}),
            "progress": PartState(Scope.GLOBAL, json={"step": step, "best": None, "rate": 0.1, "a": -0.0}),
        }
    )


def scopes(snapshot: Snapshot) -> dict[str, Scope]:
    return {name: part.scope for name, part in snapshot.parts.items()}


def bits(tensor: torch.Tensor) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    """Dtype, shape and bytes, which include the payload of a NaN and the sign of a zero."""
    raw = (
        tensor.detach()
        .clone(memory_format=torch.contiguous_format)
        .flatten()
        .view(torch.uint8)
        .numpy()
        .tobytes()
    )
    return tensor.dtype, tuple(tensor.shape), raw


def content(parts: Mapping[str, PartState]) -> dict[str, object]:
    """A value to compare parts by: names in order, bits, and JSON with the order of its keys."""
    return {
        name: (part.scope, [(key, bits(tensor)) for key, tensor in part.tensors.items()], repr(part.json))
        for name, part in parts.items()
    }
