"""Masks of up to 16 rows at a time, as the native kernels keep them."""

from __future__ import annotations

import torch
from torch import Tensor

ROWS = 16
"""Rows that share one mask: bit b of a neuron's belongs to row b of its block."""


def to_bits(mask: Tensor) -> Tensor:
    """int16 [ceil(B / 16), I] of bool [B, I]."""
    rows, neurons = mask.shape
    blocks = -(-rows // ROWS)
    padded = torch.zeros(blocks * ROWS, neurons, dtype=torch.int32)
    padded[:rows] = mask
    weights = (2 ** torch.arange(ROWS, dtype=torch.int32))[:, None]
    return (padded.view(blocks, ROWS, neurons) * weights).sum(1).to(torch.int16)


def from_bits(bits: Tensor, rows: int) -> Tensor:
    """bool [rows, I] of int16 [ceil(rows / 16), I]."""
    shifts = torch.arange(ROWS, dtype=torch.int16)[:, None]
    return (bits[:, None] >> shifts & 1).flatten(0, 1)[:rows].bool()
