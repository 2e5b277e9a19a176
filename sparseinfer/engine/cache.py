"""The key-value cache of one sequence."""

from __future__ import annotations

import torch

from sparseinfer.config import ModelConfig

_INITIAL_POSITIONS = 256


class KVCache:
    """Keys and values [num_kv_heads, positions, head_dim] fp32 per layer, growing by doubling.

    A sliding window masks old positions; they are kept, so memory is that of full attention.
    """

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self._capacity = min(_INITIAL_POSITIONS, config.context_length)
        self._keys = [self._empty(self._capacity) for _ in range(config.num_layers)]
        self._values = [self._empty(self._capacity) for _ in range(config.num_layers)]
        self.length = 0
        """Positions stored in every layer."""

    def append(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores T new positions of one layer; returns views of all of that layer's positions.

        `length` advances by `advance` once every layer has stored them.
        """
        end = self.length + keys.shape[1]
        self._reserve(end)
        self._keys[layer][:, self.length : end] = keys
        self._values[layer][:, self.length : end] = values
        return self._keys[layer][:, :end], self._values[layer][:, :end]

    def advance(self, tokens: int) -> None:
        self.length += tokens

    def _reserve(self, positions: int) -> None:
        if positions <= self._capacity:
            return
        self._capacity = min(max(positions, 2 * self._capacity), self._config.context_length)
        for stored in (self._keys, self._values):
            for layer, old in enumerate(stored):
                stored[layer] = self._empty(self._capacity)
                stored[layer][:, : self.length] = old[:, : self.length]

    def _empty(self, positions: int) -> torch.Tensor:
        return torch.empty(self._config.num_kv_heads, positions, self._config.head_dim)
