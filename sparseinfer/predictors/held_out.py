"""Which tokens are trained on, which calibrate, and which only measure."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sparseinfer.predictors.ffn import LayerFfn
from sparseinfer.predictors.metrics import Quality, QualityCounts
from sparseinfer.predictors.observe import LayerRows, unpack_mask

MOST_HELD_OUT = 16_384
"""Tokens; and at most so many that their logits stay below half a gigabyte."""
FEWEST_HELD_OUT = 256
_MOST_LOGITS = 1 << 27
_BLOCK_ROWS = 1024


class Split(NamedTuple):
    """Rows of a layer. Windows come in random order, so the last ones are held out."""

    train: LayerRows
    calibrate: LayerRows
    measure: LayerRows


def split(rows: LayerRows, neurons: int, *, training: bool) -> Split:
    """A tenth of the rows (within bounds) is held out, half to calibrate on, half to measure on;
    all of them where nothing is trained."""
    count = _held_out(len(rows) // 10 if training else len(rows), len(rows), neurons)
    begin = len(rows) - count
    middle = begin + count // 2
    return Split(rows[:begin], rows[begin:middle], rows[middle:])


def calibration_rows(tokens: int, neurons: int) -> int:
    """How many of so many rows calibrate where others are trained on."""
    return _held_out(tokens // 10, tokens, neurons) // 2


def _held_out(wanted: int, available: int, neurons: int) -> int:
    most = min(MOST_HELD_OUT, max(FEWEST_HELD_OUT, _MOST_LOGITS // neurons), available)
    return min(max(wanted, FEWEST_HELD_OUT), most)


def measure(rows: LayerRows, ffn: LayerFfn, candidates: Callable[[Tensor], Tensor]) -> Quality:
    """The quality of a predictor.

    Args:
        candidates: x fp32 [T, H] -> bool [T, I].
    """
    counts = QualityCounts()
    for begin in range(0, len(rows), _BLOCK_ROWS):
        block = rows[begin : begin + _BLOCK_ROWS]
        x = block.x.float()
        active = unpack_mask(block.masks, len(ffn.gate))
        counts.add(active, candidates(x), ffn.outputs(x, active), ffn.down)
    return counts.quality()


def outputs(rows: LayerRows, ffn: LayerFfn) -> tuple[Tensor, Tensor]:
    """(active bool, input of down fp32), both [T, I]."""
    active = unpack_mask(rows.masks, len(ffn.gate))
    blocks = [
        ffn.outputs(
            rows.x[begin : begin + _BLOCK_ROWS].float(), active[begin : begin + _BLOCK_ROWS]
        )
        for begin in range(0, len(rows), _BLOCK_ROWS)
    ]
    return active, torch.cat(blocks)
