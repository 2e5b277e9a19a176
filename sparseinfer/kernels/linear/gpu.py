"""The linear layer for decoding on a GPU: few rows of x, every weight read once."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseinfer.kernels.gpu_rows import MOST_ROWS, RowTile, row_products, rows_of
from sparseinfer.kernels.linear import check_bias, check_input
from sparseinfer.kernels.matrix import Matrix
from sparseinfer.kernels.triton_language import tl, triton


class GpuLinear:
    """A handle on one weight matrix; call it with x [B, K] fp32.

    Args:
        weight: [N, K], on a GPU; kept alive, not copied.
        bias: [N] fp32 or None.
        tile: how rows are walked over; None takes the default for K.

    The bits of a row's result depend on the weights, that row and the tile only. Nothing waits for
    the GPU, so that calls can be captured in a CUDA graph.

    Raises:
        ValueError: a bias or device that does not fit.
        UnsupportedError: a GPU that is too old.
    """

    def __init__(self, weight: Matrix, bias: Tensor | None, tile: RowTile | None = None) -> None:
        check_bias(weight, bias)
        self.weight = weight
        self.bias = None if bias is None else bias.detach()
        self.tile = tile or RowTile.of(weight.columns)
        self._rows = rows_of(weight)

    def __call__(self, x: Tensor) -> Tensor:
        """y [B, N] fp32 for x [B, K] fp32, contiguous; any B, of which 16 share a pass.

        Raises:
            ValueError: `x` has the wrong shape, dtype, device or layout.
        """
        check_input(x, self.weight)
        y = torch.empty((x.shape[0], self.weight.rows), device=x.device)
        tile, rows = self.tile, self.weight.rows
        for begin in range(0, x.shape[0], MOST_ROWS):
            part = x[begin : begin + MOST_ROWS]
            _linear[(triton.cdiv(rows, tile.rows),)](
                part,
                *self._rows.arguments,
                y if self.bias is None else self.bias,
                y[begin:],
                rows,
                self.weight.columns,
                BIASED=self.bias is not None,
                BATCH=part.shape[0],
                PADDED=triton.next_power_of_2(part.shape[0]),
                ROWS=tile.rows,
                GROUPS=tile.groups,
                STAGES=tile.stages,
                KIND=self._rows.kind,
                num_warps=tile.warps,
            )
        return y


@triton.jit
def _linear(
    x,
    data,
    scales,
    data_stride,
    scale_stride,
    bias,
    y,
    outputs,
    columns,
    BIASED: tl.constexpr,
    BATCH: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
    STAGES: tl.constexpr,
    KIND: tl.constexpr,
):
    """One program computes ROWS outputs of all rows of x."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < outputs
    found = row_products(
        data, scales, data_stride, scale_stride, row.to(tl.int64), inside, x, columns,
        BATCH, PADDED, ROWS, GROUPS, STAGES, KIND,
    )  # fmt: skip
    if BIASED:
        found += tl.load(bias + row, mask=inside, other=0.0)[:, None]
    batch = tl.arange(0, PADDED)
    tl.store(
        y + batch[None, :] * outputs + row[:, None],
        found,
        mask=inside[:, None] & (batch < BATCH)[None, :],
    )
