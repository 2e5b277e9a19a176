"""Weighted sums of few of a matrix' rows, in Triton: y[b] = sum over wanted rows r of v[b, r] W[r].

Rows are dealt out to programs in turn: program p has rows p, p + P, p + 2 P and so on, so that
those which fire together, often neighbours, are read by many. Each program finds out which of its
rows are wanted (`listed`), reads those alone, several at a time, and leaves one partial sum.
`total` adds these up, always in the same way. No program waits for another, and no number is asked
from the GPU.
"""

from __future__ import annotations

from torch import Tensor

from sparseinfer.kernels.gpu_rows import part_columns, row_tile
from sparseinfer.kernels.triton_language import processors, tl, triton


def shares(rows: int, per_processor: int, tensor: Tensor, parts: int = 1) -> tuple[int, int]:
    """How many programs share so many rows on a tensor's device, and at most how many rows each of
    them has, as a power of two.

    Args:
        per_processor: programs for each multiprocessor in all.
        parts: of the columns, each with programs of its own.
    """
    programs = min(max(1, per_processor * processors(tensor.device) // parts), rows)
    return programs, triton.next_power_of_2(triton.cdiv(rows, programs))


def total(partial: Tensor, bias: Tensor | None, counts: Tensor, y: Tensor, found: Tensor) -> None:
    """Adds up what programs left.

    Args:
        partial: fp32 [P, B, K].
        bias: fp32 [K] or None.
        counts: int32 [Q, B, C].
        y: fp32 [B, K], contiguous, where the sums go.
        found: int64 [B, C], contiguous, where the sums of counts go.
    """
    programs, batch, columns = partial.shape
    _total[(triton.cdiv(columns, _TOTAL_COLUMNS), batch)](
        partial,
        partial if bias is None else bias,
        counts,
        y,
        found,
        programs,
        columns,
        counts.shape[0],
        BIASED=bias is not None,
        BATCH=batch,
        COUNTS=counts.shape[2],
        COLUMNS=_TOTAL_COLUMNS,
        PROGRAMS=min(_TOTAL_PROGRAMS, triton.next_power_of_2(programs)),
        num_warps=8,
    )


_TOTAL_COLUMNS = 32
_TOTAL_PROGRAMS = 512


@triton.jit
def listed(wanted):
    """Numbers int32 [S] of the wanted ones of S places, in order, and how many there are."""
    one = wanted.to(tl.int32)
    return tl.cumsum(one, 0) - one, tl.sum(one, 0)


@triton.jit
def picked(own, wanted, order, number):
    """Those int32 [R] of own [S] that have the numbers int32 [R]; 0 for numbers that none has."""
    meet = wanted[None, :] & (order[None, :] == number[:, None])
    return tl.sum(tl.where(meet, own[None, :], 0), axis=1)


@triton.jit
def no_sums(BATCH: tl.constexpr, PARTS: tl.constexpr, INDEX: tl.constexpr):
    """A tuple of BATCH zeros fp32 [T, E], for one part."""
    WIDTH: tl.constexpr = PARTS[INDEX][1]
    SHARE: tl.constexpr = PARTS[INDEX][4]
    sums = ()
    for _ in tl.static_range(BATCH):
        sums = sums + (tl.zeros([WIDTH // SHARE, SHARE], dtype=tl.float32),)
    return sums


@triton.jit
def add_rows(
    sums,
    data,
    scales,
    data_stride,
    scale_stride,
    rows,
    used,
    value,
    OFFSET: tl.constexpr,
    BATCH: tl.constexpr,
    ROWS: tl.constexpr,
    PARTS: tl.constexpr,
    INDEX: tl.constexpr,
    COLUMNS: tl.constexpr,
    KIND: tl.constexpr,
):
    """The BATCH sums of one part, from OFFSET on, with value[b] [ROWS] times the rows int64 [ROWS]
    added for each b.

    Rows that are not used (int1 [ROWS]) are not read. What one row of the batch uses is multiplied
    by 0 for the others, so it must be finite.
    """
    tile = row_tile(
        data, scales, data_stride, scale_stride, rows, used, PARTS, INDEX, COLUMNS, ROWS, KIND
    )
    added = ()
    for b in tl.static_range(BATCH):
        weighted = tl.sum(tile * value[b][:, None, None], axis=0)
        added = added + (sums[OFFSET + b] + weighted,)
    return added


@triton.jit
def store_sums(
    partial,
    sums,
    program,
    OFFSET: tl.constexpr,
    BATCH: tl.constexpr,
    PARTS: tl.constexpr,
    INDEX: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Writes the sums of one part, from OFFSET on, to partial [P, BATCH, COLUMNS]."""
    column = part_columns(PARTS, INDEX)
    for b in tl.static_range(BATCH):
        start = partial + (program.to(tl.int64) * BATCH + b) * COLUMNS
        tl.store(start + column, sums[OFFSET + b], mask=column < COLUMNS)


@triton.jit
def store_counts(counts, program, numbers, BATCH: tl.constexpr, COUNTS: tl.constexpr):
    """Writes COUNTS tuples of BATCH numbers to counts [P, BATCH, COUNTS]."""
    for which in tl.static_range(COUNTS):
        for b in tl.static_range(BATCH):
            tl.store(counts + (program * BATCH + b) * COUNTS + which, numbers[which * BATCH + b])


@triton.jit
def _total(
    partial,
    bias,
    counts,
    y,
    found,
    programs,
    columns,
    counting,
    BIASED: tl.constexpr,
    BATCH: tl.constexpr,
    COUNTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PROGRAMS: tl.constexpr,
):
    """One program adds up COLUMNS outputs of a row, the first one of a row its counts as well."""
    row = tl.program_id(1)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < columns
    result = tl.zeros([COLUMNS], dtype=tl.float32)
    for first in range(0, programs, PROGRAMS):
        program = first + tl.arange(0, PROGRAMS)
        start = (program.to(tl.int64) * BATCH + row) * columns
        mask = (program < programs)[:, None] & inside[None, :]
        place = start[:, None] + column[None, :]
        result += tl.sum(tl.load(partial + place, mask=mask, other=0.0), axis=0)
    if BIASED:
        result += tl.load(bias + column, mask=inside, other=0.0)
    tl.store(y + row.to(tl.int64) * columns + column, result, mask=inside)
    if tl.program_id(0) == 0:
        for which in tl.static_range(COUNTS):
            number = tl.zeros([PROGRAMS], dtype=tl.int64)
            for first in range(0, counting, PROGRAMS):
                program = first + tl.arange(0, PROGRAMS)
                place = (program * BATCH + row) * COUNTS + which
                number += tl.load(counts + place, mask=program < counting, other=0).to(tl.int64)
            tl.store(found + row * COUNTS + which, tl.sum(number, axis=0))


__all__ = [
    "add_rows",
    "listed",
    "no_sums",
    "picked",
    "shares",
    "store_counts",
    "store_sums",
    "total",
]
