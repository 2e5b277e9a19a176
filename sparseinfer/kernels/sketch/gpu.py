"""Sketch estimates on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseinfer.kernels.gated_ffn.gpu_activations import phi_of, psi_of
from sparseinfer.kernels.gpu_chooser import GpuChooser
from sparseinfer.kernels.gpu_rows import RowTile, row_products, sketch_rows
from sparseinfer.kernels.planes import PlaneMatrix
from sparseinfer.kernels.sketch import Sketch
from sparseinfer.kernels.triton_language import tl, triton


class GpuSketch(GpuChooser):
    """The op of one layer; arguments as in `sketch.reference.estimates`, and a threshold [I] fp32,
    which may be changed in place. Errors as in `GpuChooser`."""

    def __init__(
        self,
        sketch: Sketch,
        threshold: Tensor,
        tile: RowTile | None = None,
        *,
        phi: str,
        psi: str,
        gate_bias: Tensor | None = None,
        up_bias: Tensor | None = None,
    ) -> None:
        super().__init__(sketch.shape, sketch.gate.device)
        self._gate, self._up = sketch_rows(sketch.gate), sketch_rows(sketch.up)
        self._rounds = not isinstance(sketch.gate, PlaneMatrix)
        self._threshold = threshold.detach()
        self._biases = gate_bias, up_bias
        self._phi, self._psi = phi, psi
        self._tile = tile

    def _choose(self, x: Tensor, chosen: Tensor) -> None:
        batch, neurons = chosen.shape
        tile = self._tile or RowTile.of(batch)
        gate_bias, up_bias = self._biases
        _estimate[(triton.cdiv(neurons, tile.rows),)](
            rounded_input(x) if self._rounds else x,
            *self._gate.arguments,
            x if gate_bias is None else gate_bias,
            *self._up.arguments,
            x if up_bias is None else up_bias,
            self._threshold,
            chosen,
            neurons,
            PHI=self._phi,
            PSI=self._psi,
            GATE_BIASED=gate_bias is not None,
            UP_BIASED=up_bias is not None,
            BATCH=batch,
            ROWS=tile.rows,
            PARTS=self._gate.parts(tile.columns),
            COLUMNS=self._gate.columns,
            KIND=self._gate.kind,
            num_warps=tile.warps,
        )


_SCALES = 16
"""Groups of 64 inputs that one program rounds."""


def rounded_input(x: Tensor) -> Tensor:
    """What `sketch.round_input` makes of x [B, H] fp32, contiguous, bit for bit."""
    rounded = torch.empty(x.shape, device=x.device)
    blocks = triton.cdiv(x.shape[1], 64 * _SCALES)
    # A fused multiply-add would not round the product before it is rounded to a level.
    _round[(blocks, x.shape[0])](
        x, rounded, x.shape[1], SCALES=_SCALES, num_warps=4, enable_fp_fusion=False
    )
    return rounded


@triton.jit
def _round(x, rounded, hidden, SCALES: tl.constexpr):
    """One program rounds SCALES groups of a row to multiples of their largest magnitude / 127."""
    group = tl.program_id(0) * SCALES + tl.arange(0, SCALES)
    column = group[:, None] * 64 + tl.arange(0, 64)[None, :]
    start = tl.program_id(1) * hidden
    inside = column < hidden
    value = tl.load(x + start + column, mask=inside, other=0.0)
    # A reduction to the largest value may lose NaN, which must stay.
    nan = tl.sum((value != value).to(tl.int32), axis=1) > 0
    most = tl.max(tl.abs(tl.where(value != value, 0.0, value)), axis=1)
    scale = tl.div_rn(most, tl.full([SCALES], 127.0, tl.float32))
    scale = tl.where(scale < 1e-30, 0.0, scale)
    scale = tl.where(nan, float("nan"), scale)
    one = tl.full([SCALES], 1.0, tl.float32)
    inverse = tl.where(scale == 0, 0.0, tl.div_rn(one, tl.where(scale == 0, 1.0, scale)))
    # Adding 1.5 * 2^23 leaves no bits behind the point: to nearest, ties to even.
    level = (value * inverse[:, None] + 12582912.0) - 12582912.0
    tl.store(rounded + start + column, level * scale[:, None], mask=inside)


@triton.jit
def _estimate(
    x,
    gate_data,
    gate_scales,
    gate_data_stride,
    gate_scale_stride,
    gate_bias,
    up_data,
    up_scales,
    up_data_stride,
    up_scale_stride,
    up_bias,
    threshold,
    chosen,
    neurons,
    PHI: tl.constexpr,
    PSI: tl.constexpr,
    GATE_BIASED: tl.constexpr,
    UP_BIASED: tl.constexpr,
    BATCH: tl.constexpr,
    ROWS: tl.constexpr,
    PARTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    KIND: tl.constexpr,
):
    """One program decides on ROWS neurons for all rows of x."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < neurons
    where = row.to(tl.int64)
    g = row_products(
        gate_data, gate_scales, gate_data_stride, gate_scale_stride, where, inside, x, False, BATCH,
        ROWS, PARTS, COLUMNS, KIND,
    )  # fmt: skip
    u = row_products(
        up_data, up_scales, up_data_stride, up_scale_stride, where, inside, x, False, BATCH,
        ROWS, PARTS, COLUMNS, KIND,
    )  # fmt: skip
    more_g = tl.zeros([ROWS], dtype=tl.float32)
    more_u = tl.zeros([ROWS], dtype=tl.float32)
    if GATE_BIASED:
        more_g = tl.load(gate_bias + row, mask=inside, other=0.0)
    if UP_BIASED:
        more_u = tl.load(up_bias + row, mask=inside, other=0.0)
    least = tl.load(threshold + row, mask=inside, other=0.0)
    for b in tl.static_range(BATCH):
        estimate = tl.abs(phi_of(g[b] + more_g, PHI) * psi_of(u[b] + more_u, PSI))
        reached = ~(estimate < least)
        tl.store(chosen + b * neurons + row, reached.to(tl.uint8), mask=inside)
