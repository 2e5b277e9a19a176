"""Guides in Triton: name, on a GPU, the neurons that the CPU has to compute."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sparseinfer.kernels.gated_ffn.gpu_activations import phi_of
from sparseinfer.kernels.gated_ffn.gpu_kernels import reaches
from sparseinfer.kernels.gated_ffn.guide import GuideWeights
from sparseinfer.kernels.gpu_chooser import GpuChooser
from sparseinfer.kernels.gpu_rows import MOST_ROWS, RowTile, row_products, rows_of
from sparseinfer.kernels.lowrank import LowRank
from sparseinfer.kernels.lowrank.gpu import GpuLowRank
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
        if weights.gate is not None:
            self._tile = tile or RowTile.of(weights.gate.columns)

    def __call__(self, x: Tensor, bits: Tensor) -> None:
        """Sets bits int16 [blocks of 16 rows, I] for x [B, H] fp32, both contiguous."""
        for block, begin in enumerate(range(0, x.shape[0], MOST_ROWS)):
            part = x[begin : begin + MOST_ROWS]
            if self._chooser is None:
                self._gates(part, bits[block])
            else:
                self._pack(self._chooser(part), bits[block])

    def _gates(self, x: Tensor, bits: Tensor) -> None:
        assert self._gate is not None  # else there is a chooser
        bias = self.weights.gate_bias
        batch, neurons = x.shape[0], bits.shape[0]
        # The sums of many rows of x do not fit a thread's registers beside as many weights.
        tile = self._tile if batch < _MANY else replace(self._tile, warps=2 * self._tile.warps)
        _gate_bits[(triton.cdiv(neurons, tile.rows),)](
            x,
            *self._gate.arguments,
            x if bias is None else bias,
            self._threshold,
            bits,
            neurons,
            x.shape[1],
            PHI=self.weights.phi,
            BIASED=bias is not None,
            BATCH=batch,
            PADDED=triton.next_power_of_2(batch),
            ROWS=tile.rows,
            GROUPS=tile.groups,
            STAGES=tile.stages,
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

_MANY = 8
"""Rows of x."""


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
    columns,
    PHI: tl.constexpr,
    BIASED: tl.constexpr,
    BATCH: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
    STAGES: tl.constexpr,
    KIND: tl.constexpr,
):
    """One program computes the gates of ROWS neurons for all rows of x; bit b says that row b
    reaches the threshold."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < neurons
    g = row_products(
        data, scales, data_stride, scale_stride, row.to(tl.int64), inside, x, columns,
        BATCH, PADDED, ROWS, GROUPS, STAGES, KIND,
    )  # fmt: skip
    if BIASED:
        g += tl.load(bias + row, mask=inside, other=0.0)[:, None]
    keep = reaches(phi_of(g, PHI), tl.load(threshold + row, mask=inside, other=0.0))
    batch = tl.arange(0, PADDED)[None, :]
    word = tl.sum(tl.where(batch < BATCH, keep.to(tl.int32) << batch, 0), axis=1)
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
