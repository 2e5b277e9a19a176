"""Rows of weights in Triton: their values, and their products with a few vectors.

A tile is [R, G, 32]: R rows, G groups of 32 columns, whatever the format, so that a quantised
group meets its one scale without moving anything. Everything is computed in fp32. Offsets of rows
are int64: a matrix may have more than 2^31 elements.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparseinfer.kernels.gpu_codes import GROUP, row_codes, scale_of
from sparseinfer.kernels.matrix import Matrix, scales_per_row
from sparseinfer.kernels.planes import PlaneMatrix
from sparseinfer.kernels.sketch.matrix import SketchMatrix, groups_of
from sparseinfer.kernels.triton_language import check_device, tl, triton

MOST_ROWS = 16
"""Rows of x that one launch takes."""


@dataclass(frozen=True)
class RowTile:
    """How a kernel walks over whole rows.

    Args:
        rows: of a tile, a power of two.
        groups: of 32 columns of a tile, a power of two.
        warps: of a program, a power of two.
        stages: tiles that are being loaded at one time, where a row takes several.
    """

    rows: int
    groups: int
    warps: int
    stages: int

    @classmethod
    def of(cls, columns: int) -> RowTile:
        """The default for rows of so many columns: up to 32 KiB of bf16 in flight per program."""
        groups = triton.next_power_of_2(triton.cdiv(columns, GROUP.value))
        if groups <= 16:
            return cls(rows=8, groups=groups, warps=1, stages=1)
        if groups <= 64:
            return cls(rows=4, groups=groups, warps=2, stages=1)
        return cls(rows=4, groups=128, warps=4, stages=1 if groups == 128 else 2)


@dataclass(frozen=True)
class Rows:
    """What a kernel is given of a matrix: views of its memory.

    Attributes:
        data: [N, ...], plain values or codes.
        scales: fp16 [N, ...]; `data` again where there are none.
        kind: plain, or one of `gpu_codes`.
        columns: K.
    """

    data: Tensor
    scales: Tensor
    kind: str
    columns: int

    @property
    def arguments(self) -> tuple[Tensor, Tensor, int, int]:
        """data, scales, and how far apart their rows are, in elements."""
        return self.data, self.scales, self.data.stride(0), self.scales.stride(0)


def rows_of(matrix: Matrix | PlaneMatrix) -> Rows:
    """Rows of a matrix on a GPU.

    Raises:
        ValueError: a matrix elsewhere.
        UnsupportedError: a GPU that is too old.
    """
    check_device(matrix.device)
    if isinstance(matrix, PlaneMatrix):
        scales = _scales(matrix.high, scales_per_row(matrix.columns))
        return Rows(matrix.low, scales, "planes", matrix.columns)
    data = matrix.data.detach()
    if matrix.format not in ("int8", "int4"):
        return Rows(data, data, "plain", matrix.columns)
    count = scales_per_row(matrix.columns)
    codes = data[:, 2 * count :]
    if matrix.format == "int8":
        codes = codes.view(torch.int8)
    return Rows(codes, _scales(data, count), matrix.format, matrix.columns)


def sketch_rows(sketch: SketchMatrix | PlaneMatrix) -> Rows:
    """Rows of a sketch on a GPU. Raises as `rows_of`."""
    check_device(sketch.device)
    if isinstance(sketch, PlaneMatrix):
        count = scales_per_row(sketch.columns)
        codes = sketch.high[:, 2 * count :]
        return Rows(codes, _scales(sketch.high, count), "high", sketch.columns)
    count = groups_of(sketch.columns)
    codes = sketch.data[:, 2 * count :]
    return Rows(codes, _scales(sketch.data, count), f"sketch{sketch.bits}", sketch.columns)


def _scales(data: Tensor, count: int) -> Tensor:
    """The fp16 scales that rows of bytes begin with: [N, count]."""
    rows = data.shape[0]
    # One row may have any stride, others are an even number of bytes apart.
    stride = data.stride(0) if rows > 1 else 2 * count
    return data.as_strided((rows, 2 * count), (stride, 1)).view(torch.float16)


@triton.jit
def row_tile(
    data,
    scales,
    data_stride,
    scale_stride,
    rows,
    wanted,
    first_group,
    columns,
    GROUPS: tl.constexpr,
    KIND: tl.constexpr,
):
    """Values fp32 [R, GROUPS, 32] of the rows int64 [R], from one group of columns on.

    Rows that are not wanted (int1 [R]) are not read, and 0. So are plain values beyond the last
    column; packed ones are what the padding holds.
    """
    group = first_group + tl.arange(0, GROUPS)
    lane = tl.arange(0, GROUP)
    start = data + (rows * data_stride)[:, None, None]
    if KIND == "plain":
        column = group[:, None] * GROUP + lane[None, :]
        mask = wanted[:, None, None] & (column < columns)[None, :, :]
        values = tl.load(start + column[None, :, :], mask=mask, other=0.0).to(tl.float32)
    else:
        held = tl.cdiv(columns, 2 * GROUP) * 2
        mask = wanted[:, None] & (group < held)[None, :]
        own = scales + (rows * scale_stride)[:, None]
        scale = tl.load(own + scale_of(group, KIND)[None, :], mask=mask, other=0.0)
        high = start
        if KIND == "planes":
            high = (own + held).to(tl.pointer_type(tl.uint8), bitcast=True)[:, :, None]
        every = mask[:, :, None] & (lane >= 0)[None, None, :]
        code = row_codes(start, high, every, group, held, KIND)
        values = code * scale.to(tl.float32)[:, :, None]
    return values


@triton.jit
def row_products(
    data,
    scales,
    data_stride,
    scale_stride,
    rows,
    wanted,
    x,
    columns,
    BATCH: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
    STAGES: tl.constexpr,
    KIND: tl.constexpr,
):
    """fp32 [ROWS, PADDED]: rows int64 [ROWS] times x fp32 [BATCH, columns], contiguous.

    Rows that are not wanted are not read; what is returned for them means nothing. The bits of a
    row of x do not depend on BATCH.
    """
    batch = tl.arange(0, PADDED)
    lane = tl.arange(0, GROUP)
    total = tl.zeros([ROWS, PADDED], dtype=tl.float32)
    for first in tl.range(0, tl.cdiv(columns, GROUP), GROUPS, num_stages=STAGES):
        tile = row_tile(
            data, scales, data_stride, scale_stride, rows, wanted, first, columns, GROUPS, KIND
        )
        column = (first + tl.arange(0, GROUPS))[:, None] * GROUP + lane[None, :]
        inside = column < columns
        for b in tl.static_range(BATCH):
            value = tl.load(x + b * columns + column, mask=inside, other=0.0)
            # In one dimension, so that a thread adds up what it has before it asks others.
            flat = tl.reshape(tile * value[None, :, :], [ROWS, GROUPS * GROUP])
            part = tl.sum(flat, axis=1)
            total += tl.where((batch == b)[None, :], part[:, None], 0.0)
    return total


__all__ = ["GROUP", "MOST_ROWS", "RowTile", "Rows", "row_products", "row_tile", "rows_of"]
