"""Rows of an embedding on a GPU, by ids that only the GPU knows."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseinfer.kernels.gpu_rows import part_columns, row_tile, rows_of
from sparseinfer.kernels.matrix import Matrix
from sparseinfer.kernels.triton_language import tl, triton

_WIDEST = 2048
"""Columns that a program copies at a time."""


class GpuEmbedding:
    """A handle on an embedding; call it with ids [B] int64.

    Args:
        weight: [V, H], on a GPU; kept alive, not copied.

    Nothing waits for the GPU, so that calls can be captured in a CUDA graph.

    Raises:
        ValueError: a matrix that is not on a GPU.
        UnsupportedError: a GPU that is too old.
    """

    def __init__(self, weight: Matrix) -> None:
        self.weight = weight
        self._rows = rows_of(weight)

    def __call__(self, ids: Tensor) -> Tensor:
        """The rows ids [B] int64, contiguous, as fp32 [B, H].

        Args:
            ids: each from 0 to V - 1, which nobody checks: they lie on the GPU. A negative one
                gives a row of zeros.

        Raises:
            ValueError: `ids` has the wrong shape, dtype, device or layout.
        """
        if ids.ndim != 1 or ids.dtype != torch.int64 or not ids.is_contiguous():
            raise ValueError(f"ids must be [B] int64, not {list(ids.shape)} {ids.dtype}")
        if ids.device != self.weight.device:
            raise ValueError(f"ids are on {ids.device}, but weight on {self.weight.device}")
        columns = self.weight.columns
        found = torch.empty((ids.shape[0], columns), device=ids.device)
        if ids.shape[0] == 0:
            return found
        _embed[(ids.shape[0],)](
            ids,
            *self._rows.arguments,
            found,
            PARTS=self._rows.parts(_WIDEST),
            COLUMNS=columns,
            KIND=self._rows.kind,
            num_warps=4,
        )
        return found


@triton.jit
def _embed(
    ids,
    data,
    scales,
    data_stride,
    scale_stride,
    found,
    PARTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    KIND: tl.constexpr,
):
    """One program copies one row."""
    row = tl.program_id(0)
    token = tl.load(ids + row + tl.arange(0, 1))
    for index in tl.static_range(len(PARTS)):
        tile = row_tile(
            data, scales, data_stride, scale_stride, token, token >= 0, PARTS, index, COLUMNS, 1,
            KIND,
        )  # fmt: skip
        column = part_columns(PARTS, index)[None, :, :]
        tl.store(found + row.to(tl.int64) * COLUMNS + column, tile, mask=column < COLUMNS)
