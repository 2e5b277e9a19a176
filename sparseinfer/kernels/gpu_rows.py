"""Rows of weights in Triton: their values, and their products with a few vectors.

A row is read in parts of fixed columns (`Part`), a tile [R, T, E] at a time: R rows, and of each T
threads' shares of E columns, which a thread reads in 16 bytes. What is computed with a tile is held
in the same way, so that nothing moves between threads before sums are complete. Everything is
computed in fp32. Offsets of rows are int64: a matrix may have more than 2^31 elements.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sparseinfer.kernels.gpu_codes import RUN, field_columns, fields_of, row_codes
from sparseinfer.kernels.matrix import Matrix, scales_per_row
from sparseinfer.kernels.planes import PlaneMatrix
from sparseinfer.kernels.sketch.matrix import SketchMatrix, groups_of
from sparseinfer.kernels.triton_language import check_device, tl, triton

MOST_ROWS = 8
"""Rows of x that one launch takes: what they all sum up has to fit in registers."""

_BLOCK = 64
"""Packed rows end with a whole block of so many columns."""


class Part(NamedTuple):
    """Columns of a row that a tile takes.

    Attributes:
        first: of them.
        width: how many, a power of two.
        end: nothing is read from this column on.
        span: between the fields of a byte, see `gpu_codes`.
        share: columns of a thread, E.
    """

    first: int
    width: int
    end: int
    span: int
    share: int


@dataclass(frozen=True)
class RowTile:
    """How a kernel walks over whole rows.

    Args:
        rows: of a tile, a power of two.
        columns: of a tile at most, a power of two from 64 on.
        warps: of a program, a power of two.
    """

    rows: int = 4
    columns: int = 4096
    warps: int = 4

    @classmethod
    def of(cls, batch: int) -> RowTile:
        """The default for so many rows of x: tiles take registers, and so do sums of each row."""
        return cls() if batch <= 2 else cls(columns=2048, warps=8)


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

    def parts(self, widest: int) -> tuple[Part, ...]:
        """Parts that hold all columns, none wider than `widest` or one block."""
        if self.kind == "plain":
            return _parts(0, self.columns, widest, _BLOCK, 16 // self.data.element_size())
        fields = fields_of(self.kind)
        held = triton.cdiv(self.columns, _BLOCK) * _BLOCK
        widest = max(widest, _BLOCK * fields)
        whole = held // (_BLOCK * fields) * _BLOCK * fields if fields > 1 else held
        share = RUN.value * fields
        # What does not fill a block of 64 bytes is packed more densely.
        rest = _parts(whole, held, widest, _BLOCK // fields, share) if held > whole else ()
        return _parts(0, whole, widest, _BLOCK, share) + rest


def _parts(first: int, end: int, widest: int, span: int, share: int) -> tuple[Part, ...]:
    """Few parts that are not much wider together than what is there."""
    found: list[Part] = []
    while first < end:
        left = end - first
        width = min(widest, max(share, triton.next_power_of_2(left)))
        if width > left and 2 * (width - left) > left and left >= 4 * _BLOCK:
            width //= 2
        found.append(Part(first, width, end, span, share))
        first += width
    return tuple(found)


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
    PARTS: tl.constexpr,
    INDEX: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    KIND: tl.constexpr,
):
    """Values fp32 [ROWS, T, E] of one part of the rows int64 [ROWS].

    Rows that are not wanted (int1 [ROWS]) are not read, and 0. So are plain values beyond the last
    column; packed ones are what the padding holds.
    """
    FIRST: tl.constexpr = PARTS[INDEX][0]
    WIDTH: tl.constexpr = PARTS[INDEX][1]
    END: tl.constexpr = PARTS[INDEX][2]
    SPAN: tl.constexpr = PARTS[INDEX][3]
    SHARE: tl.constexpr = PARTS[INDEX][4]
    start = data + rows * data_stride
    if KIND == "plain":
        column = FIRST + tl.arange(0, WIDTH)
        mask = wanted[:, None]
        if FIRST + WIDTH > END:
            mask = mask & (column < END)[None, :]
        found = tl.load(start[:, None] + column[None, :], mask=mask, other=0.0)
        return tl.reshape(found.to(tl.float32), [ROWS, WIDTH // SHARE, SHARE])
    else:
        FIELDS: tl.constexpr = SHARE // RUN
        HELD: tl.constexpr = (COLUMNS + 63) // 64 * 64
        own = scales + rows * scale_stride
        high = start
        if KIND == "planes":
            high = (own + HELD // 32).to(tl.pointer_type(tl.uint8), bitcast=True)
        codes = row_codes(
            start, high, wanted, FIRST, WIDTH // FIELDS, SPAN, END, HELD, ROWS, KIND, FIELDS
        )
        SKETCH: tl.constexpr = (KIND == "sketch2") or (KIND == "sketch3") or (KIND == "sketch4")  # pyright: ignore[reportAssignmentType]
        GROUP: tl.constexpr = 64 if SKETCH else 32  # pyright: ignore[reportAssignmentType]
        values = ()
        for field in tl.static_range(FIELDS):
            column = field_columns(tl.arange(0, WIDTH // SHARE), FIRST, SPAN, FIELDS) + field * SPAN
            place = own[:, None] + (column // GROUP)[None, :]
            mask = wanted[:, None] & (column < END)[None, :]
            scale = tl.load(place, mask=mask, other=0.0).to(tl.float32)
            values = values + (codes[field] * scale[:, :, None],)
        return beside(values, FIELDS)


@triton.jit
def beside(parts, COUNT: tl.constexpr):
    """[..., COUNT * E] of COUNT tensors [..., E]: 1, 2, 4, 8 or 16."""
    if COUNT == 1:
        return parts[0]
    else:
        pairs = ()
        for index in tl.static_range(COUNT // 2):
            pairs = pairs + (_pair(parts[2 * index], parts[2 * index + 1]),)
        return beside(pairs, COUNT // 2)


@triton.jit
def _pair(left, right):
    """[..., 2 E] of two tensors [..., E], without moving anything between threads."""
    both = tl.join(left, right)
    if len(left.shape) == 2:
        return tl.reshape(tl.permute(both, 0, 2, 1), [left.shape[0], 2 * left.shape[1]])
    else:
        shape: tl.constexpr = [left.shape[0], left.shape[1], 2 * left.shape[2]]  # pyright: ignore[reportAssignmentType]
        return tl.reshape(tl.permute(both, 0, 1, 3, 2), shape)


@triton.jit
def part_columns(PARTS: tl.constexpr, INDEX: tl.constexpr):
    """Columns int32 [T, E] of a part's tile."""
    FIRST: tl.constexpr = PARTS[INDEX][0]
    WIDTH: tl.constexpr = PARTS[INDEX][1]
    SPAN: tl.constexpr = PARTS[INDEX][3]
    SHARE: tl.constexpr = PARTS[INDEX][4]
    thread = tl.arange(0, WIDTH // SHARE)[:, None]
    place = tl.arange(0, SHARE)[None, :]
    if SHARE <= RUN:
        return FIRST + thread * SHARE + place
    else:
        column = field_columns(thread, FIRST, SPAN, SHARE // RUN)
        return column + place // RUN * SPAN + place % RUN


@triton.jit
def vector_tile(x, PARTS: tl.constexpr, INDEX: tl.constexpr, COLUMNS: tl.constexpr):
    """Values [T, E] of a vector fp32 [COLUMNS] that meet those of a tile; 0 beyond its end."""
    WIDTH: tl.constexpr = PARTS[INDEX][1]
    SHARE: tl.constexpr = PARTS[INDEX][4]
    thread = tl.arange(0, WIDTH // SHARE)
    pieces = ()
    # 16 bytes at a time: a thread is given what it reads, where more would be shared out anew.
    for piece in tl.static_range(SHARE // 4):
        pieces = pieces + (_four(x, thread, piece, PARTS, INDEX, COLUMNS),)
    return beside(pieces, SHARE // 4)


@triton.jit
def _four(
    x, thread, PIECE: tl.constexpr, PARTS: tl.constexpr, INDEX: tl.constexpr, COLUMNS: tl.constexpr
):
    """Four neighbouring values of each thread: [T, 4]."""
    FIRST: tl.constexpr = PARTS[INDEX][0]
    WIDTH: tl.constexpr = PARTS[INDEX][1]
    SPAN: tl.constexpr = PARTS[INDEX][3]
    SHARE: tl.constexpr = PARTS[INDEX][4]
    if SHARE <= RUN:
        column = FIRST + thread * SHARE + 4 * PIECE
    else:
        column = field_columns(thread, FIRST, SPAN, SHARE // RUN)
        # The field that it is in starts SPAN columns on for each 16 that lie before it.
        column += 4 * PIECE + 4 * PIECE // RUN * (SPAN - RUN)
    place = column[:, None] + tl.arange(0, 4)[None, :]
    if FIRST + WIDTH > COLUMNS:
        return tl.load(x + place, mask=place < COLUMNS, other=0.0)
    else:
        return tl.load(x + place)


@triton.jit
def vectors(x, PARTS: tl.constexpr, COLUMNS: tl.constexpr):
    """A tuple of the tiles of a vector fp32 [COLUMNS], one of each part."""
    found = ()
    for index in tl.static_range(len(PARTS)):
        found = found + (vector_tile(x, PARTS, index, COLUMNS),)
    return found


@triton.jit
def row_products(
    data,
    scales,
    data_stride,
    scale_stride,
    rows,
    wanted,
    x,
    HELD: tl.constexpr,
    BATCH: tl.constexpr,
    ROWS: tl.constexpr,
    PARTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    KIND: tl.constexpr,
):
    """A tuple of BATCH vectors fp32 [ROWS]: rows int64 [ROWS] times x.

    Args:
        wanted: int1 [ROWS]; other rows are not read, and what is returned for them means nothing.
        x: fp32 [BATCH, COLUMNS]; where HELD, its `vectors`, for a BATCH of 1.
    """
    totals = ()
    for index in tl.static_range(len(PARTS)):
        tile = row_tile(
            data, scales, data_stride, scale_stride, rows, wanted, PARTS, index, COLUMNS, ROWS, KIND
        )
        sums = ()
        for b in tl.static_range(BATCH):
            value = x[index] if HELD else vector_tile(x + b * COLUMNS, PARTS, index, COLUMNS)
            sums = sums + (tl.sum(tile * value[None, :, :], axis=2),)
        found = _totals(sums, BATCH)
        if index == 0:
            totals = found
        else:
            added = ()
            for b in tl.static_range(BATCH):
                added = added + (totals[b] + found[b],)
            totals = added
    return totals


@triton.jit
def _totals(sums, BATCH: tl.constexpr):
    """A tuple of vectors [R], the sums over T of tensors [R, T]; threads meet once for all."""
    for _ in tl.static_range(BATCH, 8):
        sums = sums + (sums[0],)
    if BATCH == 1:
        return (tl.sum(sums[0], axis=1),)
    elif BATCH == 2:
        left, right = tl.split(tl.sum(tl.join(sums[0], sums[1]), axis=1))
        return (left, right)
    elif BATCH <= 4:
        return _apart(tl.sum(_joined(sums[0], sums[1], sums[2], sums[3]), axis=1))
    else:
        low = _joined(sums[0], sums[1], sums[2], sums[3])
        high = _joined(sums[4], sums[5], sums[6], sums[7])
        left, right = tl.split(tl.sum(tl.join(low, high), axis=1))
        return _apart(left) + _apart(right)


@triton.jit
def _joined(first, second, third, fourth):
    """[R, T, 2, 2] of four tensors [R, T]."""
    return tl.join(tl.join(first, second), tl.join(third, fourth))


@triton.jit
def _apart(four):
    """The vectors [R] of what `_joined` four, summed up to [R, 2, 2]."""
    left, right = tl.split(four)
    first, second = tl.split(left)
    third, fourth = tl.split(right)
    return (first, second, third, fourth)


__all__ = [
    "MOST_ROWS",
    "Part",
    "RowTile",
    "Rows",
    "beside",
    "part_columns",
    "row_products",
    "row_tile",
    "rows_of",
    "sketch_rows",
    "vectors",
]
