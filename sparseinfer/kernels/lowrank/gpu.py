"""Low-rank candidates on a GPU."""

from __future__ import annotations

from torch import Tensor

from sparseinfer.kernels.gpu_chooser import GpuChooser
from sparseinfer.kernels.gpu_rows import RowTile, row_products, rows_of
from sparseinfer.kernels.linear.gpu import GpuLinear
from sparseinfer.kernels.lowrank import LowRank
from sparseinfer.kernels.triton_language import tl, triton


class GpuLowRank(GpuChooser):
    """The op of one layer; arguments and errors as in `GpuChooser`."""

    def __init__(self, predictor: LowRank, tile: RowTile | None = None) -> None:
        super().__init__((predictor.intermediate, predictor.hidden), predictor.inward.device)
        self._inward = GpuLinear(predictor.inward, None)
        self._outward = rows_of(predictor.outward)
        self._bias = predictor.bias.detach()
        self._tile = tile

    def _choose(self, x: Tensor, chosen: Tensor) -> None:
        batch, neurons = chosen.shape
        tile = self._tile or RowTile.of(batch)
        _reach[(triton.cdiv(neurons, tile.rows),)](
            self._inward(x),
            *self._outward.arguments,
            self._bias,
            chosen,
            neurons,
            BATCH=batch,
            ROWS=tile.rows,
            PARTS=self._outward.parts(tile.columns),
            COLUMNS=self._outward.columns,
            KIND=self._outward.kind,
            num_warps=tile.warps,
        )


@triton.jit
def _reach(
    z,
    data,
    scales,
    data_stride,
    scale_stride,
    bias,
    chosen,
    neurons,
    BATCH: tl.constexpr,
    ROWS: tl.constexpr,
    PARTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    KIND: tl.constexpr,
):
    """One program decides on ROWS neurons for all rows of z [BATCH, COLUMNS]."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < neurons
    logit = row_products(
        data, scales, data_stride, scale_stride, row.to(tl.int64), inside, z, False, BATCH, ROWS,
        PARTS, COLUMNS, KIND,
    )  # fmt: skip
    added = tl.load(bias + row, mask=inside, other=0.0)
    for b in tl.static_range(BATCH):
        reached = ~(logit[b] + added < 0)
        tl.store(chosen + b * neurons + row, reached.to(tl.uint8), mask=inside)
