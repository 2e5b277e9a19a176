"""The key-value cache of one sequence."""

from __future__ import annotations

import torch

from sparseinfer.config import ModelConfig

_INITIAL_POSITIONS = 256


def kv_bytes(config: ModelConfig, dtype: torch.dtype, positions: int) -> int:
    """Bytes of keys and values of so many positions, all layers."""
    per_position = 2 * config.num_layers * config.num_kv_heads * config.head_dim * dtype.itemsize
    return per_position * positions


class KVCache:
    """Keys and values of all layers, growing by doubling.

    A sliding window masks old positions; they are kept, so memory is that of full attention.
    """

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        self._config = config
        self._dtype = dtype
        self._capacity = min(_INITIAL_POSITIONS, config.context_length)
        self.keys = self._empty()
        """[L, num_kv_heads, capacity, head_dim]"""
        self.values = self._empty()
        self.length = 0
        """Positions stored in every layer."""

    def reserve(self, tokens: int) -> None:
        """Makes room for `tokens` more positions. `keys` and `values` may become new tensors."""
        positions = self.length + tokens
        if positions <= self._capacity:
            return
        self._capacity = min(max(positions, 2 * self._capacity), self._config.context_length)
        for name in ("keys", "values"):
            grown = self._empty()
            grown[:, :, : self.length] = getattr(self, name)[:, :, : self.length]
            setattr(self, name, grown)

    def advance(self, tokens: int) -> None:
        """Counts `tokens` more positions, once every layer has stored them."""
        self.length += tokens

    def truncate(self, length: int) -> None:
        """Forgets all positions from `length` on, of which there are at least so many; keeps the
        memory."""
        self.length = length

    def extend_from(self, source: KVCache, length: int) -> None:
        """Appends the positions of another cache of the same model up to `length`, which both then
        hold: this one must be no longer, that one no shorter."""
        begin = self.length
        self.reserve(length - begin)
        self.keys[:, :, begin:length] = source.keys[:, :, begin:length]
        self.values[:, :, begin:length] = source.values[:, :, begin:length]
        self.length = length

    def _empty(self) -> torch.Tensor:
        config = self._config
        return torch.empty(
            config.num_layers,
            config.num_kv_heads,
            self._capacity,
            config.head_dim,
            dtype=self._dtype,
        )
