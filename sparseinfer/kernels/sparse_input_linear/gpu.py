"""The input-sparse linear layer for decoding on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseinfer.kernels.gpu_gather import GatherTile, Segments, accumulate, append, total
from sparseinfer.kernels.gpu_rows import MOST_ROWS, rows_of
from sparseinfer.kernels.matrix import Matrix
from sparseinfer.kernels.sparse_input_linear import (
    SparseInputOutput,
    check_arguments,
    check_input,
)
from sparseinfer.kernels.triton_language import tl, triton

_SEGMENT = 128


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
        """y [B, N] fp32 and reads [B] int64 for x [B, K] fp32, contiguous; any B, of which 16 share
        a pass.

        Raises:
            ValueError: `x` has the wrong shape, dtype, device or layout.
        """
        check_input(x, self.weight)
        y = torch.empty((x.shape[0], self.weight.columns), device=x.device)
        reads = torch.empty((x.shape[0], 1), dtype=torch.int64, device=x.device)
        for begin in range(0, x.shape[0], MOST_ROWS):
            end = min(begin + MOST_ROWS, x.shape[0])
            self._block(x[begin:end], y[begin:end], reads[begin:end])
        return SparseInputOutput(y, reads[:, 0])

    def _block(self, x: Tensor, y: Tensor, reads: Tensor) -> None:
        values, listed, counts = list_inputs(x, self._threshold)
        partial = accumulate(values, listed, self._rows, len(x), self.tile)
        total(partial, self._bias, counts, y, reads)


def list_inputs(x: Tensor, threshold: Tensor | None) -> tuple[Tensor, Segments, Tensor]:
    """The inputs that count, for `gpu_gather`.

    Args:
        x: [B, K] fp32, contiguous, at most 16 rows.
        threshold: [K] fp32 on |x|; None: all inputs count but those that are 0.

    Returns:
        fp32 [K, padded B], set where an input counts in any row, 0 for rows in which it does not;
        those inputs; int32 [segments, B, 1], how many count.
    """
    batch, inputs = x.shape
    padded = triton.next_power_of_2(batch)
    listed = Segments.empty(inputs, _SEGMENT, x.device)
    values = torch.empty((inputs, padded), device=x.device)
    counts = torch.empty((listed.number, batch, 1), dtype=torch.int32, device=x.device)
    _list_inputs[(listed.number,)](
        x,
        x if threshold is None else threshold,
        values,
        listed.index,
        listed.counts,
        counts,
        inputs,
        BOUNDED=threshold is not None,
        BATCH=batch,
        PADDED=padded,
        SEGMENT=_SEGMENT,
        num_warps=4,
    )
    return values, listed, counts


@triton.jit
def _list_inputs(
    x,
    threshold,
    values,
    index,
    count,
    reads,
    inputs,
    BOUNDED: tl.constexpr,
    BATCH: tl.constexpr,
    PADDED: tl.constexpr,
    SEGMENT: tl.constexpr,
):
    """One program lists the inputs of one segment that count in any row of x."""
    segment = tl.program_id(0)
    batch = tl.arange(0, PADDED)
    column = segment * SEGMENT + tl.arange(0, SEGMENT)
    inside = column < inputs
    mask = inside[:, None] & (batch < BATCH)[None, :]
    value = tl.load(x + batch[None, :] * inputs + column[:, None], mask=mask, other=0.0)
    # Said by what is dropped, so that NaN, which compares false, is kept.
    keep = ~(value == 0)
    if BOUNDED:
        least = tl.load(threshold + column, mask=inside, other=0.0)
        keep = keep & ~(tl.abs(value) < least[:, None])
    wanted = tl.sum(keep.to(tl.int32), axis=1) > 0
    place = column[:, None] * PADDED + batch[None, :]
    every = wanted[:, None] & (batch >= 0)[None, :]
    tl.store(values + place, tl.where(keep, value, 0.0), mask=every)
    tl.store(count + segment, append(index, segment, 0, column, wanted, SEGMENT))
    tl.store(reads + segment * BATCH + batch, tl.sum(keep.to(tl.int32), axis=0), mask=batch < BATCH)
