"""What is to be saved, and what a load gives back: named parts of tensors and JSON.

A snapshot refers to live tensors and copies none; whoever makes one must leave the tensors as they
are until the writer is done. It knows nothing of what the parts mean or of files.
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
"""safetensors' names of the dtypes that can be saved."""


@dataclass(frozen=True, slots=True)
class PartState:
    """The state of one part on one rank: references to its tensors, and a copy of its JSON, which is small.

    A tensor may be spread over the ranks; see sharding.py.

    Raises:
        YaokiError: a tensor that cannot be written as it is (sparse, complex, on the meta device), or
            whose name safetensors cannot hold.
    """

    scope: Scope
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    json: JSON = None
    """None: the part has tensors only."""
    rarely_changes: bool = False
    """Most saves find its tensors as the last one did: they are digested first, and linked to if so."""
    _versions: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, tensor in self.tensors.items():
            _require_storable(name, tensor)
        object.__setattr__(self, "tensors", MappingProxyType(dict(self.tensors)))
        object.__setattr__(self, "json", copy.deepcopy(self.json))
        object.__setattr__(self, "_versions", {n: version_of(t) for n, t in self.tensors.items()})

    @property
    def written_to(self) -> str | None:
        """A tensor to which torch has written in place since this state was made, if there is one."""
        return next((n for n, t in self.tensors.items() if version_of(t) != self._versions[n]), None)

    @property
    def aliases(self) -> dict[str, str]:
        """Name of each tensor that is tied to an earlier one -> name of that one; see `tied`."""
        return tied(self.tensors)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All parts of one instant.

    Raises:
        YaokiError: a part's name cannot be part of a file name.
    """

    parts: Mapping[str, PartState]

    def __post_init__(self) -> None:
        for name in self.parts:
            if not is_plain_name(name):
                raise YaokiError(f"{name!r} cannot name a part: letters, digits, '.', '_' and '-' only")
        object.__setattr__(self, "parts", MappingProxyType(dict(self.parts)))


def tied(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Name of each tensor that is tied to an earlier one -> name of that one.

    Tied means the same memory seen in the same way: address, dtype, shape and strides. Views that merely
    overlap are not tied; each is stored in full.
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
    """How often torch has written to the tensor in place, through whatever view."""
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
    """False for text with lone surrogates, which UTF-8 cannot hold."""
    return text.isprintable() or not any(0xD800 <= ord(character) < 0xE000 for character in text)
