"""What a decode step read, row by row, gathered without waiting for the GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sparseinfer.kernels.gated_ffn import FfnOutput
from sparseinfer.kernels.input_mask import PROJECTIONS

_ATTENTION = len(PROJECTIONS) - 3


class LayerReads(NamedTuple):
    """What one layer read."""

    attention: Sequence[Tensor | None]
    """int64 [B], inputs that count, of q, k, v and o; None without thresholds. Or of two matrices
    that have none."""
    ffn: FfnOutput


def step_counts(layers: Sequence[LayerReads], *, every: bool) -> Tensor:
    """Counts int32 [L, B, 2], rows of up and of down; with `every` [L, B, 10], also rows of gate
    where candidates are chosen, and the inputs of each of `PROJECTIONS` that count, 0 for those
    without thresholds."""
    rows = torch.stack([one.ffn.counts for one in layers])
    if not every:
        return rows.int()
    counts = torch.zeros(
        (*rows.shape[:2], 3 + len(PROJECTIONS)), dtype=torch.int32, device=rows.device
    )
    counts[:, :, :2] = rows
    _put(counts[:, :, 2], [one.ffn.gates for one in layers])
    for place in range(_ATTENTION):
        parts = [one.attention for one in layers]
        used = [part[place] if len(part) == _ATTENTION else None for part in parts]
        _put(counts[:, :, 3 + place], used)
    _put(counts[:, :, 3 + _ATTENTION :], [one.ffn.inputs for one in layers])
    return counts


def _put(place: Tensor, found: Sequence[Tensor | None]) -> None:
    """Sets place [L, ...] to what each layer has; 0, where it has nothing, it holds already."""
    if all(one is not None for one in found):
        place.copy_(torch.stack([one for one in found if one is not None]))
        return
    for layer, one in zip(place, found, strict=True):
        if one is not None:
            layer.copy_(one)


__all__ = ["LayerReads", "step_counts"]
