"""The state that is saved and loaded: named parts of tensors and JSON.

A snapshot refers to the live tensors and copies none, so they must not change until they are written.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch

from yaoki.checkpoint.layout import is_plain_name
from yaoki.checkpoint.manifest import Scope
from yaoki.errors import YaokiError
from yaoki.ranks.torch_internals import local_tensor
from yaoki.strict_json import JSON

DTYPE_NAMES: Mapping[torch.dtype, str] = MappingProxyType(
    {
        torch.bool: "BOOL",
        torch.uint8: "U8",
        torch.int8: "I8",
        torch.int16: "I16",
        torch.uint16: "U16",
        torch.int32: "I32",
        torch.uint32: "U32",
        torch.int64: "I64",
        torch.uint64: "U64",
        torch.float8_e4m3fn: "F8_E4M3",
        torch.float8_e5m2: "F8_E5M2",
        torch.float16: "F16",
        torch.bfloat16: "BF16",
        torch.float32: "F32",
        torch.float64: "F64",
    }
)
"""Names in safetensors of the dtypes that can be saved."""


@dataclass(frozen=True, slots=True)
class PartState:
    """The state of one part on one rank: references to its tensors, and a copy of its JSON.

    A tensor may be sharded over the ranks; see sharding.py.

    Raises:
        YaokiError: a tensor cannot be saved (sparse, complex, on the meta device), or its name is not allowed
            in safetensors.
    """

    scope: Scope
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    json: JSON = None
    """None if the part has tensors only."""
    rarely_changes: bool = False
    """The tensors are digested first, and if they are unchanged, the file of the last save is linked."""
    _versions: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, tensor in self.tensors.items():
            _require_storable(name, tensor)
        object.__setattr__(self, "tensors", MappingProxyType(dict(self.tensors)))
        object.__setattr__(self, "json", copy.deepcopy(self.json))
        object.__setattr__(self, "_versions", {n: version_of(t) for n, t in self.tensors.items()})

    @property
    def written_to(self) -> str | None:
        """Name of a tensor that torch has written to since this state was created, if any."""
        return next((n for n, t in self.tensors.items() if version_of(t) != self._versions[n]), None)

    @property
    def aliases(self) -> dict[str, str]:
        """See `tied`."""
        return tied(self.tensors)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All parts of the state at one time.

    Raises:
        YaokiError: the name of a part is not allowed in a file name.
    """

    parts: Mapping[str, PartState]

    def __post_init__(self) -> None:
        for name in self.parts:
            if not is_plain_name(name):
                raise YaokiError(f"{name!r} cannot name a part: letters, digits, '.', '_' and '-' only")
        object.__setattr__(self, "parts", MappingProxyType(dict(self.parts)))


def tied(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Maps the name of each tensor that is tied to an earlier one to the name of that one.

    Tied tensors have the same address, dtype, shape and strides. Views that only overlap are not tied; each
    is stored in full.
    """
    first: dict[object, str] = {}
    aliases = {}
    for name, tensor in tensors.items():
        rows = local_tensor(tensor)
        if rows.numel() == 0:
            continue  # all empty tensors share the address 0
        view = (rows.device, rows.data_ptr(), rows.dtype, tensor.shape, rows.stride())
        original = first.setdefault(view, name)
        if original != name:
            aliases[name] = original
    return aliases


def version_of(tensor: torch.Tensor) -> int:
    """The number of in-place writes by torch to the tensor's memory, through any view."""
    return 0 if tensor.is_inference() else tensor._version


def _require_storable(name: str, tensor: torch.Tensor) -> None:
    if name == "__metadata__" or not _is_unicode(name):
        raise YaokiError(f"{name!a} cannot name a tensor in a safetensors file")
    plain = tensor.layout is torch.strided and not tensor.is_meta and not tensor.is_neg()
    if not plain or tensor.dtype not in DTYPE_NAMES:
        raise YaokiError(
            f"the tensor {name!r} cannot be saved: {tensor.dtype}, {tensor.layout}, on {tensor.device}",
            hint="save strided tensors of an integer, boolean or floating dtype that hold data",
        )


def _is_unicode(text: str) -> bool:
    """False for text with lone surrogates, which UTF-8 cannot encode."""
    return text.isprintable() or not any(0xD800 <= ord(character) < 0xE000 for character in text)
