"""A key/value cache for decoding: rows can leave, and appending a token copies one token.

transformers' own dynamic layer concatenates, which copies the whole cache for every token.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import DynamicCache, DynamicLayer

_GROWTH = 64
"""Least number of columns that a full slab grows by."""


class SlabLayer(DynamicLayer):
    """Keys and values `[B, heads, S, D]` as views into slabs that have room for more columns."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self._length = 0
        self._key_slab, self._value_slab = key_states[:, :, :0], value_states[:, :, :0]
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append new columns `[B, heads, s, D]`; the views over all columns so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, end = self._length, self._length + key_states.shape[2]
        if end > self._key_slab.shape[2]:
            capacity = end + max(_GROWTH, end // 2)
            self._key_slab = _grown(self._key_slab[:, :, :start], capacity)
            self._value_slab = _grown(self._value_slab[:, :, :start], capacity)
        self._key_slab[:, :, start:end] = key_states
        self._value_slab[:, :, start:end] = value_states
        self._length = end
        self.keys, self.values = self._key_slab[:, :, :end], self._value_slab[:, :, :end]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only some rows."""
        self._key_slab, self._value_slab = self._key_slab[indices], self._value_slab[indices]
        self.keys = self._key_slab[:, :, : self._length]
        self.values = self._value_slab[:, :, : self._length]


def new_cache(config: PreTrainedConfig) -> DynamicCache:
    """An empty cache that fits the model; its plain layers are slabs, special ones (sliding window) stay."""
    cache = DynamicCache(config=config)
    cache.layers = [SlabLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]  # type: ignore[no-untyped-call]
    return cache


def _grown(slab: Tensor, capacity: int) -> Tensor:
    batch, heads, length, width = slab.shape
    larger = torch.empty(batch, heads, capacity, width, dtype=slab.dtype, device=slab.device)
    larger[:, :, :length] = slab
    return larger
