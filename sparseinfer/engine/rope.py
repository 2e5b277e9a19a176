"""Rotary position embeddings: tables of cos and sin, in fp32."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class Rope:
    """cos and sin for every position of the context, computed as far as they are used."""

    def __init__(
        self, inv_freq: Sequence[float], scale: float, device: torch.device | None = None
    ) -> None:
        """
        Args:
            inv_freq: [head_dim / 2], angle per position of each pair of values, in radians.
            scale: factor on cos and sin.
            device: where tables are; None: the CPU.
        """
        self._inv_freq = torch.tensor(inv_freq, dtype=torch.float32)
        self._scale = scale
        self._device = device
        self._cos = torch.empty(0, 2 * self._inv_freq.numel(), device=device)
        self._sin = self._cos

    def on(self, device: torch.device) -> Rope:
        """The same angles on another device."""
        return Rope(self._inv_freq.tolist(), self._scale, device)

    def tables(self, start: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin of positions start..end-1, each [end - start, head_dim] fp32."""
        if end > self._cos.shape[0]:
            positions = torch.arange(max(end, 2 * self._cos.shape[0]), dtype=torch.float32)
            angles = positions[:, None] * self._inv_freq
            angles = torch.cat((angles, angles), dim=-1)
            # Computed on the CPU, whose digits are the same everywhere.
            self._cos = (angles.cos() * self._scale).to(self._device)
            self._sin = (angles.sin() * self._scale).to(self._device)
        return self._cos[start:end], self._sin[start:end]
