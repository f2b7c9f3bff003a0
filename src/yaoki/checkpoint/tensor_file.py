"""What a tensor file looks like: safetensors, its header a function of the tensors in it.

So a reader that knows the tensors from the manifest knows every byte of the header before it has read one,
and has nothing to believe. It knows nothing of where the elements come from or go to.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from yaoki.checkpoint.snapshot import DTYPE_NAMES

ALIGNMENT_BYTES = 4096
"""The header is padded so that the data starts at a multiple of this."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a file."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Of its elements, row by row."""
        return math.prod(self.shape) * self.dtype.itemsize


def in_file_order(tensors: Iterable[StoredTensor]) -> list[StoredTensor]:
    """Widest elements first, so that a tensor starts on a multiple of its element's size; then by name."""
    return sorted(tensors, key=lambda tensor: (-tensor.dtype.itemsize, tensor.name))


def header(tensors: Iterable[StoredTensor]) -> bytes:
    """safetensors' header for tensors that follow one another without gaps, with padding to the boundary."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        begin, end = end, end + tensor.num_bytes
        entries[tensor.name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode("ascii")
    padded = -(-(8 + len(text)) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES - 8
    return padded.to_bytes(8, "little") + text.ljust(padded, b" ")
