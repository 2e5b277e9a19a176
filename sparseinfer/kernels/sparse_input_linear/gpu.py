"""The input-sparse linear layer for decoding on a GPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparseinfer.kernels.gpu_gather import (
    add_rows,
    listed,
    no_sums,
    picked,
    shares,
    store_counts,
    store_sums,
    total,
)
from sparseinfer.kernels.gpu_rows import MOST_ROWS, Part, Rows, rows_of
from sparseinfer.kernels.matrix import Matrix
from sparseinfer.kernels.sparse_input_linear import (
    SparseInputOutput,
    check_arguments,
    check_input,
)
from sparseinfer.kernels.triton_language import tl, triton


@dataclass(frozen=True)
class GatherTile:
    """How rows are gathered.

    Args:
        rows: of a tile, a power of two.
        columns: that a program sums up at most, a power of two from 64 on.
        warps: of a program, a power of two.
        per_processor: programs for each multiprocessor.
    """

    rows: int = 8
    columns: int = 1024
    warps: int = 4
    per_processor: int = 4


class GpuSparseInputLinear:
    """A handle on one weight matrix stored by input; call it with x [B, K] fp32.

    Args:
        weight: [K, N], on a GPU; kept alive, not copied.
        threshold: [K] fp32 on |x|; inf switches an input off. Changing it in place takes effect at
            the next call.
        bias: [N] fp32 or None.
        tile: how rows are gathered.

    Two calls give the same bits. Nothing waits for the GPU, so that calls can be captured in a
    CUDA graph.

    Raises:
        ValueError: a shape, dtype or device that does not fit, or a NaN threshold.
        UnsupportedError: a GPU that is too old.
    """

    def __init__(
        self,
        weight: Matrix,
        threshold: Tensor,
        bias: Tensor | None,
        tile: GatherTile | None = None,
    ) -> None:
        check_arguments(weight, threshold, bias)
        self.weight = weight
        self.tile = tile or GatherTile()
        self._threshold = threshold.detach()
        self._bias = None if bias is None else bias.detach()
        self._rows = rows_of(weight)

    def __call__(self, x: Tensor) -> SparseInputOutput:
        """y [B, N] fp32 and reads [B] int64 for x [B, K] fp32, contiguous; any B, of which up
        to 8 share a pass.

        Raises:
            ValueError: `x` has the wrong shape, dtype, device or layout.
        """
        check_input(x, self.weight)
        y = torch.empty((x.shape[0], self.weight.columns), device=x.device)
        reads = torch.empty((x.shape[0], 1), dtype=torch.int64, device=x.device)
        for begin in range(0, x.shape[0], MOST_ROWS):
            end = min(begin + MOST_ROWS, x.shape[0])
            self._pass(x[begin:end], y[begin:end], reads[begin:end])
        return SparseInputOutput(y, reads[:, 0])

    def _pass(self, x: Tensor, y: Tensor, reads: Tensor) -> None:
        partial, counts = sum_inputs(x, self._threshold, self._rows, self.tile)
        total(partial, self._bias, counts, y, reads)


def sum_inputs(
    x: Tensor, threshold: Tensor | None, rows: Rows, tile: GatherTile
) -> tuple[Tensor, Tensor]:
    """Sums of the inputs that count, for `gpu_gather.total`.

    Args:
        x: [B, K] fp32, contiguous, at most 8 rows.
        threshold: [K] fp32 on |x|; None: all inputs count but those that are 0.
        rows: of the weight [K, N].

    Returns:
        fp32 [P, B, N], and int32 [P, B, 1], how many inputs count.
    """
    batch, inputs = x.shape
    runs = _runs(rows.parts(tile.columns))
    programs, own = shares(inputs, tile.per_processor, x, sum(count for _, count in runs))
    partial = torch.empty((programs, batch, rows.columns), device=x.device)
    counts = torch.empty((programs, batch, 1), dtype=torch.int32, device=x.device)
    for part, count in runs:
        _sum_inputs[(programs, count)](
            x,
            x if threshold is None else threshold,
            *rows.arguments,
            partial,
            counts,
            inputs,
            BOUNDED=threshold is not None,
            BATCH=batch,
            ROWS=tile.rows,
            OWN=own,
            PARTS=(part,),
            COLUMNS=rows.columns,
            KIND=rows.kind,
            num_warps=tile.warps,
        )
    return partial, counts


def _runs(parts: tuple[Part, ...]) -> list[tuple[Part, int]]:
    """Parts that one launch takes: one, or several that are alike and full, and how many."""
    runs: list[tuple[Part, int]] = []
    for part in parts:
        full = part.first + part.width <= part.end
        if runs and full and runs[-1][0][1:] == part[1:]:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((part, 1))
    return runs


@triton.jit
def _sum_inputs(
    x,
    threshold,
    data,
    scales,
    data_stride,
    scale_stride,
    partial,
    reads,
    inputs,
    BOUNDED: tl.constexpr,
    BATCH: tl.constexpr,
    ROWS: tl.constexpr,
    OWN: tl.constexpr,
    PARTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    KIND: tl.constexpr,
):
    """One program adds up one part of the columns of its own inputs, at most OWN."""
    WIDTH: tl.constexpr = PARTS[0][1]
    FIELDS: tl.constexpr = 2 if KIND == "int4" else 1  # pyright: ignore[reportAssignmentType]
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    part = tl.program_id(1)
    data += part * (WIDTH // FIELDS)
    scales += part * (WIDTH // 32)
    own = program + tl.arange(0, OWN) * programs
    values = _counting(x, threshold, own, own < inputs, inputs, BOUNDED, BATCH)
    wanted = own < 0
    numbers = ()
    for b in tl.static_range(BATCH):
        wanted = wanted | (values[b] != 0)
        numbers = numbers + (tl.sum((values[b] != 0).to(tl.int32), axis=0),)
    order, number_of = listed(wanted)
    sums = no_sums(BATCH, PARTS, 0)
    for first in range(0, number_of, ROWS):
        number = first + tl.arange(0, ROWS)
        row = picked(own, wanted, order, number).to(tl.int64)
        used = number < number_of
        value = _counting(x, threshold, row, used, inputs, BOUNDED, BATCH)
        sums = add_rows(
            sums, data, scales, data_stride, scale_stride, row, used, value, 0, BATCH, ROWS,
            PARTS, 0, COLUMNS, KIND,
        )  # fmt: skip
    store_sums(partial + part * WIDTH, sums, program, 0, BATCH, PARTS, 0, COLUMNS)
    # Programs of other parts count the same.
    store_counts(reads, program, numbers, BATCH, 1)


@triton.jit
def _counting(x, threshold, column, inside, inputs, BOUNDED: tl.constexpr, BATCH: tl.constexpr):
    """A tuple of BATCH vectors: some inputs of each row, 0 where they do not count."""
    values = ()
    for b in tl.static_range(BATCH):
        value = tl.load(x + b * inputs + column, mask=inside, other=0.0)
        if BOUNDED:
            # Of NaN, which compares false, none is dropped.
            least = tl.load(threshold + column, mask=inside, other=0.0)
            value = tl.where(tl.abs(value) < least, 0.0, value)
        values = values + (value,)
    return values
