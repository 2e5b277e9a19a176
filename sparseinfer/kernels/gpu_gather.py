"""Weighted sums of few of a matrix' rows, in Triton: y[b] = sum over listed rows r of v[r, b] W[r].

1. Whoever decides which rows are wanted appends them to segments: fixed ranges of rows, each with a
   list and a count of its own (`append`). No order depends on which program runs first.
2. `accumulate`: programs share the listed rows equally, in the order of their numbers. Each one
   reads all counts, so that nobody waits for a number from the GPU, and leaves one partial sum.
3. `total`: adds the partial sums of each output, always in the same way.

Two runs give the same bits. Which rows are listed moves them from program to program, so what
another row of the batch needs may change the last bits of a sum.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparseinfer.kernels.gpu_rows import GROUP, Rows, row_tile
from sparseinfer.kernels.triton_language import processors, tl, triton


@dataclass(frozen=True)
class GatherTile:
    """How rows are gathered.

    Args:
        rows: of a tile, a power of two.
        groups: of 32 columns that a program sums up at most, a power of two.
        sums: that it keeps in registers at most, a power of two from 32 on; a batch divides it.
        warps: of a program, a power of two.
        per_processor: programs for each multiprocessor.
    """

    rows: int = 8
    groups: int = 64
    sums: int = 8192
    warps: int = 4
    per_processor: int = 2

    def groups_for(self, columns: int, batch: int) -> int:
        """Groups of 32 columns that a program sums up for a batch, a power of two."""
        held = triton.next_power_of_2(triton.cdiv(columns, GROUP.value))
        fit = self.sums // (GROUP.value * triton.next_power_of_2(batch))
        return max(1, min(held, self.groups, fit))


@dataclass(frozen=True)
class Segments:
    """Lists of rows, one for each range of `size` rows.

    Attributes:
        index: int32 [count of segments * size]; of each segment as many as it has are set.
        counts: int32 [count of segments].
        size: rows of a range, a power of two.
    """

    index: Tensor
    counts: Tensor
    size: int

    @classmethod
    def empty(cls, rows: int, size: int, device: torch.device) -> Segments:
        """Of a matrix with so many rows; nothing is set."""
        segments = triton.cdiv(rows, size)
        index = torch.empty(segments * size, dtype=torch.int32, device=device)
        return cls(index, torch.empty(segments, dtype=torch.int32, device=device), size)

    @property
    def number(self) -> int:
        """Of segments."""
        return self.counts.shape[0]

    @property
    def padded(self) -> int:
        """The same, as a power of two that a warp is busy with."""
        return max(32, triton.next_power_of_2(self.number))


def accumulate(
    values: Tensor, listed: Segments, rows: Rows, batch: int, tile: GatherTile
) -> Tensor:
    """Partial sums fp32 [shares, B, K].

    Args:
        values: fp32 [N, padded B], set where a row is listed; a row of zeros is not read.
        listed: rows of `rows`.
        batch: B.
    """
    groups = tile.groups_for(rows.columns, batch)
    chunks = triton.cdiv(rows.columns, groups * GROUP.value)
    programs = tile.per_processor * processors(values.device)
    shares = max(1, programs // chunks)
    partial = torch.empty((shares, batch, rows.columns), device=values.device)
    _accumulate[(shares, chunks)](
        values,
        listed.index,
        listed.counts,
        listed.number,
        *rows.arguments,
        partial,
        rows.columns,
        BATCH=batch,
        PADDED=values.shape[1],
        ROWS=tile.rows,
        GROUPS=groups,
        SEGMENT=listed.size,
        SEGMENTS=listed.padded,
        KIND=rows.kind,
        num_warps=tile.warps,
    )
    return partial


def total(partial: Tensor, bias: Tensor | None, counts: Tensor, y: Tensor, found: Tensor) -> None:
    """Adds up what programs left.

    Args:
        partial: fp32 [shares, B, K].
        bias: fp32 [K] or None.
        counts: int32 [parts, B, C].
        y: fp32 [B, K], contiguous, where the sums go.
        found: int64 [B, C], contiguous, where the sums of counts go.
    """
    shares, batch, columns = partial.shape
    _total[(triton.cdiv(columns, _TOTAL_COLUMNS), batch)](
        partial,
        partial if bias is None else bias,
        counts,
        y,
        found,
        shares,
        columns,
        counts.shape[0],
        BIASED=bias is not None,
        BATCH=batch,
        COUNTS=counts.shape[2],
        COLUMNS=_TOTAL_COLUMNS,
        SHARES=_TOTAL_SHARES,
        num_warps=4,
    )


_TOTAL_COLUMNS = 64
_TOTAL_SHARES = 64


@triton.jit
def append(index, segment, filled, row, wanted, SEGMENT: tl.constexpr):
    """Puts the wanted ones of the rows int32 [R] behind the first `filled` of a segment; how many
    it has then."""
    one = wanted.to(tl.int32)
    place = segment * SEGMENT + filled + tl.cumsum(one, 0) - one
    tl.store(index + place, row, mask=wanted)
    return filled + tl.sum(one, 0)


@triton.jit
def listed_row(index, counts, ends, number, inside, SEGMENT: tl.constexpr):
    """Rows int64 [R] of the numbers int32 [R] in the order of all segments.

    Args:
        counts, ends: int32 [S], of each segment, and summed up to and with it.
        inside: int1 [R]; others become row 0.
    """
    before = ends[None, :] <= number[:, None]
    segment = tl.sum(before.to(tl.int32), axis=1)
    earlier = tl.sum(tl.where(before, counts[None, :], 0), axis=1)
    place = segment * SEGMENT + number - earlier
    return tl.load(index + place, mask=inside, other=0).to(tl.int64)


@triton.jit
def add_rows(sums, tile, value, BATCH: tl.constexpr, PADDED: tl.constexpr):
    """sums [PADDED, G, 32] and value[:, b] times tile [R, G, 32] for each b. A row of value 0 adds
    exactly 0, whatever the tile holds."""
    batch = tl.arange(0, PADDED)
    for b in tl.static_range(BATCH):
        one = tl.sum(tl.where((batch == b)[None, :], value, 0.0), axis=1)[:, None, None]
        added = tl.sum(tl.where(one != 0, tile * one, 0.0), axis=0)
        sums += tl.where((batch == b)[:, None, None], added[None, :, :], 0.0)
    return sums


@triton.jit
def store_sums(
    partial,
    sums,
    share,
    first_group,
    columns,
    BATCH: tl.constexpr,
    PADDED: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """Writes sums [PADDED, GROUPS, 32] to partial [shares, BATCH, columns]."""
    batch = tl.arange(0, PADDED)
    group = first_group + tl.arange(0, GROUPS)
    column = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    start = (share.to(tl.int64) * BATCH + batch) * columns
    mask = (batch < BATCH)[:, None, None] & (column < columns)[None, :, :]
    tl.store(partial + start[:, None, None] + column[None, :, :], sums, mask=mask)


@triton.jit
def _accumulate(
    values,
    index,
    count,
    segments,
    data,
    scales,
    data_stride,
    scale_stride,
    partial,
    columns,
    BATCH: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
    SEGMENT: tl.constexpr,
    SEGMENTS: tl.constexpr,
    KIND: tl.constexpr,
):
    """One program sums up one share of the listed rows in GROUPS groups of columns."""
    share = tl.program_id(0)
    first_group = tl.program_id(1) * GROUPS
    segment = tl.arange(0, SEGMENTS)
    counts = tl.load(count + segment, mask=segment < segments, other=0)
    ends = tl.cumsum(counts, 0)
    listed = tl.sum(counts, 0)
    each = tl.cdiv(listed, tl.num_programs(0))
    begin = share * each
    end = tl.minimum(begin + each, listed)
    batch = tl.arange(0, PADDED)
    sums = tl.zeros([PADDED, GROUPS, GROUP], dtype=tl.float32)
    for first in range(begin, end, ROWS):
        number = first + tl.arange(0, ROWS)
        inside = number < end
        row = listed_row(index, counts, ends, number, inside, SEGMENT)
        mask = inside[:, None] & (batch < BATCH)[None, :]
        value = tl.load(values + row[:, None] * PADDED + batch[None, :], mask=mask, other=0.0)
        used = tl.sum((value != 0).to(tl.int32), axis=1) > 0
        tile = row_tile(
            data, scales, data_stride, scale_stride, row, used, first_group, columns, GROUPS, KIND
        )
        sums = add_rows(sums, tile, value, BATCH, PADDED)
    store_sums(partial, sums, share, first_group, columns, BATCH, PADDED, GROUPS)


@triton.jit
def _total(
    partial,
    bias,
    counts,
    y,
    found,
    shares,
    columns,
    parts,
    BIASED: tl.constexpr,
    BATCH: tl.constexpr,
    COUNTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SHARES: tl.constexpr,
):
    """One program adds up COLUMNS outputs of a row, the first one of a row its counts as well."""
    row = tl.program_id(1)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < columns
    sums = tl.zeros([SHARES, COLUMNS], dtype=tl.float32)
    for first in range(0, shares, SHARES):
        share = first + tl.arange(0, SHARES)
        start = (share.to(tl.int64) * BATCH + row) * columns
        mask = (share < shares)[:, None] & inside[None, :]
        sums += tl.load(partial + start[:, None] + column[None, :], mask=mask, other=0.0)
    result = tl.sum(sums, axis=0)
    if BIASED:
        result += tl.load(bias + column, mask=inside, other=0.0)
    tl.store(y + row.to(tl.int64) * columns + column, result, mask=inside)
    if tl.program_id(0) == 0:
        for which in tl.static_range(COUNTS):
            number = tl.zeros([SHARES], dtype=tl.int64)
            for first in range(0, parts, SHARES):
                part = first + tl.arange(0, SHARES)
                place = (part * BATCH + row) * COUNTS + which
                number += tl.load(counts + place, mask=part < parts, other=0).to(tl.int64)
            tl.store(found + row * COUNTS + which, tl.sum(number, axis=0))


__all__ = [
    "GatherTile",
    "Segments",
    "accumulate",
    "add_rows",
    "append",
    "listed_row",
    "store_sums",
    "total",
]
