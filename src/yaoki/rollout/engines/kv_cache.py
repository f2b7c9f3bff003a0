"""A key/value cache for decoding: rows can leave or multiply, and appending a token copies one token.

transformers' own dynamic layer concatenates, which copies the whole cache for every token.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import DynamicCache, DynamicLayer

_LEAST_ROOM = 64
"""Columns that a slab has room for, at least, when it is made, beside those that are in use."""


class SlabLayer(DynamicLayer):
    """Keys and values `[B, heads, S, D]` as views into slabs `[B, capacity, heads, D]`.

    All heads of a column lie together: appending writes one run of memory per row, and columns that are
    not in use yet are memory that was never touched.
    """

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self._length = 0
        self._key_slab, self._value_slab = (
            states.transpose(1, 2)[:, :0] for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append new columns `[B, heads, s, D]`; the views over all columns so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, end = self._length, self._length + key_states.shape[2]
        if end > self._key_slab.shape[1]:
            self._key_slab = _with_room(self._key_slab[:, :start], end)
            self._value_slab = _with_room(self._value_slab[:, :start], end)
        self._key_slab[:, start:end] = key_states.transpose(1, 2)
        self._value_slab[:, start:end] = value_states.transpose(1, 2)
        return self._view(end)

    def batch_select_indices(self, indices: Tensor) -> None:
        """The named rows, in that order; a row may be named more than once."""
        self._key_slab = _with_room(self._key_slab[indices, : self._length], self._length)
        self._value_slab = _with_room(self._value_slab[indices, : self._length], self._length)
        self._view(self._length)

    def _view(self, length: int) -> tuple[Tensor, Tensor]:
        self._length = length
        self.keys = self._key_slab[:, :length].transpose(1, 2)
        self.values = self._value_slab[:, :length].transpose(1, 2)
        return self.keys, self.values


def new_cache(config: PreTrainedConfig) -> DynamicCache:
    """An empty cache that fits the model; its plain layers are slabs, special ones (sliding window) stay."""
    cache = DynamicCache(config=config)
    cache.layers = [SlabLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]  # type: ignore[no-untyped-call]
    return cache


def slab_capacity(num_columns: int) -> int:
    """Columns of a new slab of which `num_columns` are in use at once."""
    return num_columns + max(_LEAST_ROOM, num_columns // 2)


def _with_room(columns: Tensor, num_columns: int) -> Tensor:
    """A slab that begins with `columns` `[B, s, heads, D]` and has room for `num_columns` and more."""
    batch, length, heads, width = columns.shape
    shape = (batch, slab_capacity(num_columns), heads, width)
    slab = torch.empty(shape, dtype=columns.dtype, device=columns.device)
    slab[:, :length] = columns
    return slab
