"""Rows of an embedding on a GPU, by ids that only the GPU knows."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseinfer.kernels.gpu_rows import GROUP, row_tile, rows_of
from sparseinfer.kernels.matrix import Matrix
from sparseinfer.kernels.triton_language import tl, triton

_GROUPS = 32
"""Of 32 columns that a program copies at most."""


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
        held = triton.cdiv(columns, GROUP.value)
        groups = min(_GROUPS, triton.next_power_of_2(held))
        _embed[(triton.cdiv(held, groups), ids.shape[0])](
            ids,
            *self._rows.arguments,
            found,
            columns,
            GROUPS=groups,
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
    columns,
    GROUPS: tl.constexpr,
    KIND: tl.constexpr,
):
    """One program copies GROUPS groups of columns of one row."""
    first = tl.program_id(0) * GROUPS
    row = tl.program_id(1)
    one = tl.arange(0, 1)
    token = tl.load(ids + row + one)
    tile = row_tile(
        data, scales, data_stride, scale_stride, token, token >= 0, first, columns, GROUPS, KIND
    )
    column = (first + tl.arange(0, GROUPS))[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    place = found + row.to(tl.int64) * columns + column
    tl.store(place[None, :, :], tile, mask=(column < columns)[None, :, :])
