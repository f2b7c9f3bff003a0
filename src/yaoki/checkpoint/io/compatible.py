"""Whether what was saved is what is to be restored: the same parts, the same tensors, tied alike.

It compares descriptions; no element is read or written.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from yaoki.checkpoint.io.snapshot import DTYPE_NAMES
from yaoki.checkpoint.manifest import Manifest, Scope
from yaoki.errors import RefusedError

_NUM_SHOWN = 3

_HINT = "the model or optimizer differs from the one that was saved; restore into the same one"


def signature_of(tensor: torch.Tensor) -> str:
    """dtype and shape in one word, such as `F32[2, 3]`."""
    return form(DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype)), tensor.shape)


def form(dtype: str, shape: Iterable[int]) -> str:
    """dtype and shape in one word, as `signature_of` gives it."""
    return f"{dtype}{list(shape)}"


def require_parts(directory: Path, manifest: Manifest, expected: Mapping[str, Scope]) -> None:
    """RefusedError if parts are missing, left over, or of another scope."""
    saved = {part.name: part.scope for part in manifest.parts}
    problems = (
        ("does not hold", [name for name in expected if name not in saved]),
        ("also holds", [name for name in saved if name not in expected]),
        (
            "holds with another scope",
            [name for name in expected if name in saved and expected[name] is not saved[name]],
        ),
    )
    found = [f"{what} {_some(names)}" for what, names in problems if names]
    if found:
        raise RefusedError(
            f"{directory} does not have the expected parts: it {'; it '.join(found)}",
            hint="it was saved by a run of another kind; resume with the config that it was saved with",
        )


def require_same_signatures(live: Mapping[str, str], saved: Mapping[str, str]) -> None:
    """RefusedError if tensors are missing or left over, or differ; both map names to forms."""
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
    """RefusedError if tensors share memory now but were saved apart; both map an alias to its original."""
    apart = [
        f"{name} and {original}"
        for name, original in live.items()
        if saved.get(name, name) != saved.get(original, original)
    ]
    if apart:
        raise RefusedError(
            f"the checkpoint's tensors do not fit: {len(apart)} tied now, saved apart: {_some(apart)}",
            hint=_HINT,
        )


def _some(names: Iterable[str]) -> str:
    """The first few names."""
    names = list(names)
    shown = ", ".join(names[:_NUM_SHOWN])
    return shown if len(names) <= _NUM_SHOWN else f"{shown} and {len(names) - _NUM_SHOWN} more"
