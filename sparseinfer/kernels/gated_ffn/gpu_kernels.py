"""The Triton kernels of the gated FFN: which neurons are computed, and what they put out.

Gate-first, `gate_neurons` computes all gates and lists the neurons that fire in any row of x; with
candidates, `list_candidates` lists those, and their gates are computed when they are gathered.
`gather_neurons` then shares the listed neurons among its programs, and either adds up their rows of
down as well or leaves that to `gpu_gather.accumulate`, which splits the columns where the sums of
a batch fill the registers.
"""

from __future__ import annotations

from sparseinfer.kernels.gated_ffn.gpu_activations import phi_of, psi_of
from sparseinfer.kernels.gpu_gather import add_rows, append, listed_row, store_sums
from sparseinfer.kernels.gpu_rows import GROUP, row_products, row_tile
from sparseinfer.kernels.triton_language import tl, triton


@triton.jit
def reaches(a, threshold):
    """Which activations [R, B] reach their threshold [R]; said by what is dropped, so that NaN,
    which compares false, is kept."""
    return ~((tl.abs(a) < threshold[:, None]) | (a == 0))


@triton.jit
def gate_neurons(
    x,
    data,
    scales,
    data_stride,
    scale_stride,
    bias,
    threshold,
    activations,
    index,
    count,
    neurons,
    columns,
    PHI: tl.constexpr,
    BIASED: tl.constexpr,
    BATCH: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
    STAGES: tl.constexpr,
    SEGMENT: tl.constexpr,
    KIND: tl.constexpr,
):
    """One program computes the gates of one segment of neurons. Where one fires in any row, it is
    listed, and activations [I, PADDED] has its a, 0 for rows in which it does not."""
    segment = tl.program_id(0)
    batch = tl.arange(0, PADDED)
    filled = 0
    for first in range(0, SEGMENT, ROWS):
        row = segment * SEGMENT + first + tl.arange(0, ROWS)
        inside = row < neurons
        g = row_products(
            data, scales, data_stride, scale_stride, row.to(tl.int64), inside, x, columns,
            BATCH, PADDED, ROWS, GROUPS, STAGES, KIND,
        )  # fmt: skip
        if BIASED:
            g += tl.load(bias + row, mask=inside, other=0.0)[:, None]
        a = phi_of(g, PHI)
        keep = reaches(a, tl.load(threshold + row, mask=inside, other=0.0))
        keep = keep & inside[:, None] & (batch < BATCH)[None, :]
        fires = tl.sum(keep.to(tl.int32), axis=1) > 0
        place = row[:, None] * PADDED + batch[None, :]
        every = fires[:, None] & (batch >= 0)[None, :]
        tl.store(activations + place, tl.where(keep, a, 0.0), mask=every)
        filled = append(index, segment, filled, row, fires, SEGMENT)
    tl.store(count + segment, filled)


@triton.jit
def list_candidates(
    candidates,
    index,
    count,
    neurons,
    BATCH: tl.constexpr,
    PADDED: tl.constexpr,
    SEGMENT: tl.constexpr,
):
    """One program lists the neurons of one segment that are candidates (uint8 [BATCH, I]) in any
    row."""
    segment = tl.program_id(0)
    batch = tl.arange(0, PADDED)
    row = segment * SEGMENT + tl.arange(0, SEGMENT)
    mask = (row < neurons)[:, None] & (batch < BATCH)[None, :]
    place = batch[None, :] * neurons + row[:, None]
    wanted = tl.load(candidates + place, mask=mask, other=0).to(tl.int32)
    tl.store(count + segment, append(index, segment, 0, row, tl.sum(wanted, axis=1) > 0, SEGMENT))


@triton.jit
def gather_neurons(
    gate_x,
    x,
    index,
    count,
    segments,
    candidates,
    activations,
    gate_data,
    gate_scales,
    gate_data_stride,
    gate_scale_stride,
    gate_bias,
    threshold,
    up_data,
    up_scales,
    up_data_stride,
    up_scale_stride,
    up_bias,
    down_data,
    down_scales,
    down_data_stride,
    down_scale_stride,
    down_input,
    partial,
    counts_out,
    neurons,
    columns,
    PHI: tl.constexpr,
    PSI: tl.constexpr,
    GATES: tl.constexpr,
    GATE_BIASED: tl.constexpr,
    UP_BIASED: tl.constexpr,
    DOWN_INPUT: tl.constexpr,
    DOWN: tl.constexpr,
    BATCH: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
    DOWN_GROUPS: tl.constexpr,
    STAGES: tl.constexpr,
    SEGMENT: tl.constexpr,
    SEGMENTS: tl.constexpr,
    KIND: tl.constexpr,
    DOWN_KIND: tl.constexpr,
):
    """One program computes its share of the listed neurons.

    Args:
        gate_x, x: fp32 [BATCH, columns], what gate and up multiply.
        candidates: uint8 [BATCH, I], used where GATES: gates are computed here.
        activations: [I, PADDED]; else read here. Where not DOWN, h is left there.
        partial: [programs, BATCH, columns], written where DOWN: down is added up here, in
            DOWN_GROUPS groups of columns that hold all of them.
        counts_out: int32 [programs, BATCH, 3]: neurons kept, of those with h != 0, candidates.
    """
    program = tl.program_id(0)
    segment = tl.arange(0, SEGMENTS)
    counts = tl.load(count + segment, mask=segment < segments, other=0)
    ends = tl.cumsum(counts, 0)
    listed = tl.sum(counts, 0)
    each = tl.cdiv(listed, tl.num_programs(0))
    begin = program * each
    end = tl.minimum(begin + each, listed)
    batch = tl.arange(0, PADDED)
    kept = tl.zeros([PADDED], dtype=tl.int32)
    live = tl.zeros([PADDED], dtype=tl.int32)
    considered = tl.zeros([PADDED], dtype=tl.int32)
    sums = tl.zeros([PADDED, DOWN_GROUPS, GROUP], dtype=tl.float32)
    for first in range(begin, end, ROWS):
        number = first + tl.arange(0, ROWS)
        inside = number < end
        row = listed_row(index, counts, ends, number, inside, SEGMENT)
        mask = inside[:, None] & (batch < BATCH)[None, :]
        place = row[:, None] * PADDED + batch[None, :]
        if GATES:
            g = row_products(
                gate_data, gate_scales, gate_data_stride, gate_scale_stride, row, inside,
                gate_x, columns, BATCH, PADDED, ROWS, GROUPS, STAGES, KIND,
            )  # fmt: skip
            if GATE_BIASED:
                g += tl.load(gate_bias + row, mask=inside, other=0.0)[:, None]
            a = phi_of(g, PHI)
            chosen = candidates + batch[None, :].to(tl.int64) * neurons + row[:, None]
            wanted = tl.load(chosen, mask=mask, other=0) != 0
            considered += tl.sum(wanted.to(tl.int32), axis=0)
            keep = wanted & reaches(a, tl.load(threshold + row, mask=inside, other=0.0))
        else:
            a = tl.load(activations + place, mask=mask, other=0.0)
            keep = a != 0
        fires = tl.sum(keep.to(tl.int32), axis=1) > 0
        u = row_products(
            up_data, up_scales, up_data_stride, up_scale_stride, row, fires, x, columns,
            BATCH, PADDED, ROWS, GROUPS, STAGES, KIND,
        )  # fmt: skip
        if UP_BIASED:
            u += tl.load(up_bias + row, mask=inside, other=0.0)[:, None]
        h = tl.where(keep, a * psi_of(u, PSI), 0.0)
        if DOWN_INPUT:
            least = tl.load(down_input + row, mask=inside, other=0.0)
            h = tl.where(tl.abs(h) < least[:, None], 0.0, h)
        put = h != 0
        kept += tl.sum(keep.to(tl.int32), axis=0)
        live += tl.sum(put.to(tl.int32), axis=0)
        if DOWN:
            used = tl.sum(put.to(tl.int32), axis=1) > 0
            tile = row_tile(
                down_data, down_scales, down_data_stride, down_scale_stride, row, used, 0, columns,
                DOWN_GROUPS, DOWN_KIND,
            )  # fmt: skip
            sums = add_rows(sums, tile, h, BATCH, PADDED)
        else:
            every = inside[:, None] & (batch >= 0)[None, :]
            tl.store(activations + place, h, mask=every)
    if DOWN:
        store_sums(partial, sums, program, 0, columns, BATCH, PADDED, DOWN_GROUPS)
    own = counts_out + (program * BATCH + batch) * 3
    tl.store(own, kept, mask=batch < BATCH)
    tl.store(own + 1, live, mask=batch < BATCH)
    tl.store(own + 2, considered, mask=batch < BATCH)
