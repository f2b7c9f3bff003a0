"""Checks that a checkpoint fits the live state: the same parts, the same tensors, the same ties.

Only descriptions are compared; no element is read or written.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from yaoki.checkpoint.io.snapshot import DTYPE_NAMES
from yaoki.checkpoint.manifest import Manifest, Scope
from yaoki.errors import RefusedError

_NUM_SHOWN = 3

_HINT = "the model or the optimizer differs from the saved one; restore into the same one"


def signature_of(tensor: torch.Tensor) -> str:
    """Dtype and shape as one word, such as `F32[2, 3]`."""
    return signature(DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype)), tensor.shape)


def signature(dtype: str, shape: Iterable[int]) -> str:
    """The word that `signature_of` returns, from the name of a dtype and a shape."""
    return f"{dtype}{list(shape)}"


def require_parts(directory: Path, manifest: Manifest, expected: Mapping[str, Scope]) -> None:
    """RefusedError if parts are missing or unexpected, or have another scope."""
    saved = {part.name: part.scope for part in manifest.parts}
    problems = (
        ("lacks", [name for name in expected if name not in saved]),
        ("also has", [name for name in saved if name not in expected]),
        (
            "has with another scope",
            [name for name in expected if name in saved and expected[name] is not saved[name]],
        ),
    )
    found = [f"{what} {_some(names)}" for what, names in problems if names]
    if found:
        raise RefusedError(
            f"{directory} does not have the expected parts: it {'; it '.join(found)}",
            hint="it was saved with another config; resume with that one",
        )


def require_same_signatures(live: Mapping[str, str], saved: Mapping[str, str]) -> None:
    """RefusedError if tensors are missing or unexpected, or differ. Both map names to signatures."""
    problems = (
        ("not in the checkpoint", [name for name in live if name not in saved]),
        ("only in the checkpoint", [name for name in saved if name not in live]),
        (
            "of another shape or dtype",
            [
                f"{name} (live {live[name]}, saved {saved[name]})"
                for name in saved
                if name in live and live[name] != saved[name]
            ],
        ),
    )
    found = [f"{len(names)} {what}: {_some(names)}" for what, names in problems if names]
    if found:
        raise RefusedError(f"the checkpoint's tensors do not fit: {'; '.join(found)}", hint=_HINT)


def require_same_ties(live: Mapping[str, str], saved: Mapping[str, str]) -> None:
    """RefusedError if tensors are tied now but were not when saved. Both map an alias to its original."""
    apart = [
        f"{name} and {original}"
        for name, original in live.items()
        if saved.get(name, name) != saved.get(original, original)
    ]
    if apart:
        raise RefusedError(
            f"the checkpoint's tensors do not fit: {len(apart)} tied now, but not when saved: {_some(apart)}",
            hint=_HINT,
        )


def _some(names: Iterable[str]) -> str:
    """The first names, and the number of the others."""
    names = list(names)
    shown = ", ".join(names[:_NUM_SHOWN])
    return shown if len(names) <= _NUM_SHOWN else f"{shown} and {len(names) - _NUM_SHOWN} more"
