"""Guides in Triton: name, on a GPU, the neurons that the CPU has to compute."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseinfer.kernels.gated_ffn.gpu_activations import phi_of
from sparseinfer.kernels.gated_ffn.guide import GuideWeights
from sparseinfer.kernels.gpu_chooser import GpuChooser
from sparseinfer.kernels.gpu_rows import MOST_ROWS, RowTile, row_products, rows_of
from sparseinfer.kernels.lowrank import LowRank
from sparseinfer.kernels.lowrank.gpu import GpuLowRank
from sparseinfer.kernels.masks import ROWS as BLOCK
from sparseinfer.kernels.sign.gpu import GpuSign
from sparseinfer.kernels.sketch.gpu import GpuSketch
from sparseinfer.kernels.triton_language import tl, triton


class GpuGuide:
    """A handle on the deciding part of some neurons, see `cold.Guide`.

    Args:
        weights: on a GPU; kept alive, not copied. Changing `threshold` in place takes effect at the
            next call.
        tile: how rows are walked over; None takes the default.

    Nothing waits for the GPU, so that calls can be captured in a CUDA graph.

    Raises:
        ValueError: weights that are not on a GPU.
        UnsupportedError: a GPU that is too old.
    """

    def __init__(self, weights: GuideWeights, tile: RowTile | None = None) -> None:
        self.weights = weights
        self._chooser = _chooser(weights, tile)
        self._threshold = weights.threshold.detach()
        self._gate = None if weights.gate is None else rows_of(weights.gate)
        self._tile = tile

    def __call__(self, x: Tensor, bits: Tensor) -> None:
        """Sets bits int16 [blocks of 16 rows, I] for x [B, H] fp32, both contiguous."""
        for block, begin in enumerate(range(0, x.shape[0], BLOCK)):
            part = x[begin : begin + BLOCK]
            if self._chooser is None:
                self._gates(part, bits[block])
            else:
                self._pack(self._chooser(part), bits[block])

    def _gates(self, x: Tensor, bits: Tensor) -> None:
        assert self._gate is not None  # else there is a chooser
        bias, neurons = self.weights.gate_bias, bits.shape[0]
        for first in range(0, x.shape[0], MOST_ROWS):
            part = x[first : first + MOST_ROWS]
            tile = self._tile or RowTile.of(len(part))
            _gate_bits[(triton.cdiv(neurons, tile.rows),)](
                part,
                *self._gate.arguments,
                x if bias is None else bias,
                self._threshold,
                bits,
                neurons,
                PHI=self.weights.phi,
                BIASED=bias is not None,
                FIRST=first,
                BATCH=part.shape[0],
                ROWS=tile.rows,
                PARTS=self._gate.parts(tile.columns),
                COLUMNS=x.shape[1],
                KIND=self._gate.kind,
                num_warps=tile.warps,
            )

    def _pack(self, chosen: Tensor, bits: Tensor) -> None:
        batch, neurons = chosen.shape
        _mask_bits[(triton.cdiv(neurons, _PACKED),)](
            chosen.view(torch.uint8),
            bits,
            neurons,
            BATCH=batch,
            PADDED=triton.next_power_of_2(batch),
            NEURONS=_PACKED,
            num_warps=4,
        )


_PACKED = 256
"""Neurons whose bits one program puts together."""


def _chooser(weights: GuideWeights, tile: RowTile | None) -> GpuChooser | None:
    if weights.sketch is not None:
        return GpuSketch(
            weights.sketch,
            weights.threshold,
            tile,
            phi=weights.phi,
            psi=weights.psi,
            gate_bias=weights.gate_bias,
            up_bias=weights.up_bias,
        )
    if isinstance(weights.predictor, LowRank):
        return GpuLowRank(weights.predictor)
    return None if weights.predictor is None else GpuSign(weights.predictor)


@triton.jit
def _gate_bits(
    x,
    data,
    scales,
    data_stride,
    scale_stride,
    bias,
    threshold,
    bits,
    neurons,
    PHI: tl.constexpr,
    BIASED: tl.constexpr,
    FIRST: tl.constexpr,
    BATCH: tl.constexpr,
    ROWS: tl.constexpr,
    PARTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    KIND: tl.constexpr,
):
    """One program computes the gates of ROWS neurons for all rows of x; bit FIRST + b says that row
    b reaches the threshold. Bits below FIRST are there already, those above become 0."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < neurons
    g = row_products(
        data, scales, data_stride, scale_stride, row.to(tl.int64), inside, x, False, BATCH, ROWS,
        PARTS, COLUMNS, KIND,
    )  # fmt: skip
    added = tl.zeros([ROWS], dtype=tl.float32)
    if BIASED:
        added = tl.load(bias + row, mask=inside, other=0.0)
    least = tl.load(threshold + row, mask=inside, other=0.0)
    word = tl.zeros([ROWS], dtype=tl.int32)
    if FIRST > 0:
        word = tl.load(bits + row, mask=inside, other=0).to(tl.int32)
    for b in tl.static_range(BATCH):
        a = phi_of(g[b] + added, PHI)
        # Said by what is dropped, so that NaN, which compares false, is kept.
        keep = ~((tl.abs(a) < least) | (a == 0))
        word = word | (keep.to(tl.int32) << (FIRST + b))
    tl.store(bits + row, word.to(tl.int16), mask=inside)


@triton.jit
def _mask_bits(
    chosen, bits, neurons, BATCH: tl.constexpr, PADDED: tl.constexpr, NEURONS: tl.constexpr
):
    """One program turns uint8 [BATCH, neurons] into a word for each of NEURONS neurons."""
    neuron = tl.program_id(0) * NEURONS + tl.arange(0, NEURONS)
    batch = tl.arange(0, PADDED)
    inside = neuron < neurons
    mask = inside[:, None] & (batch < BATCH)[None, :]
    place = batch[None, :] * neurons + neuron[:, None]
    one = tl.load(chosen + place, mask=mask, other=0).to(tl.int32)
    tl.store(bits + neuron, tl.sum(one << batch[None, :], axis=1).to(tl.int16), mask=inside)


__all__ = ["GpuGuide"]
