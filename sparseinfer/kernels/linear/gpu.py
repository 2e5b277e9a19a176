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
        tile: how rows are walked over; None takes the default for each batch.

    Two calls give the same bits. Nothing waits for the GPU, so that calls can be captured in a CUDA
    graph.

    Raises:
        ValueError: a bias or device that does not fit.
        UnsupportedError: a GPU that is too old.
    """

    def __init__(self, weight: Matrix, bias: Tensor | None, tile: RowTile | None = None) -> None:
        check_bias(weight, bias)
        self.weight = weight
        self.bias = None if bias is None else bias.detach()
        self._tile = tile
        self._rows = rows_of(weight)

    def __call__(self, x: Tensor) -> Tensor:
        """y [B, N] fp32 for x [B, K] fp32, contiguous; any B, of which up to 8 share a pass.

        Raises:
            ValueError: `x` has the wrong shape, dtype, device or layout.
        """
        check_input(x, self.weight)
        y = torch.empty((x.shape[0], self.weight.rows), device=x.device)
        rows = self.weight.rows
        for begin in range(0, x.shape[0], MOST_ROWS):
            part = x[begin : begin + MOST_ROWS]
            tile = self._tile or RowTile.of(len(part))
            _linear[(triton.cdiv(rows, tile.rows),)](
                part,
                *self._rows.arguments,
                y if self.bias is None else self.bias,
                y[begin:],
                rows,
                BIASED=self.bias is not None,
                BATCH=part.shape[0],
                ROWS=tile.rows,
                PARTS=self._rows.parts(tile.columns),
                COLUMNS=self.weight.columns,
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
    BIASED: tl.constexpr,
    BATCH: tl.constexpr,
    ROWS: tl.constexpr,
    PARTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    KIND: tl.constexpr,
):
    """One program computes ROWS outputs of all rows of x."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < outputs
    found = row_products(
        data, scales, data_stride, scale_stride, row.to(tl.int64), inside, x, False, BATCH, ROWS,
        PARTS, COLUMNS, KIND,
    )  # fmt: skip
    added = tl.zeros([ROWS], dtype=tl.float32)
    if BIASED:
        added = tl.load(bias + row, mask=inside, other=0.0)
    for b in tl.static_range(BATCH):
        tl.store(y + b * outputs + row, found[b] + added, mask=inside)
