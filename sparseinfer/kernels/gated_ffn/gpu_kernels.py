"""The Triton kernel of the gated FFN.

Neurons are dealt out to programs in turn. A program goes through its own, a few at a time: their
gates; where any fires, the rows of up of those that do; of down, where there is something to add.
It adds up down itself, and `gpu_gather.total` what all programs have; where the sums of a batch do
not fit in registers, it leaves what neurons put out instead, for `sparse_input_linear`.

Where candidates or activations are given, a program lists its own neurons that have any, and goes
through those alone.
"""

from __future__ import annotations

from sparseinfer.kernels.gated_ffn.gpu_activations import phi_of, psi_of
from sparseinfer.kernels.gpu_gather import (
    add_rows,
    listed,
    no_sums,
    picked,
    store_counts,
    store_sums,
)
from sparseinfer.kernels.gpu_rows import row_products, vectors
from sparseinfer.kernels.triton_language import tl, triton


@triton.jit
def compute_neurons(
    gate_x,
    x,
    given,
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
    out,
    counts,
    neurons,
    PHI: tl.constexpr,
    PSI: tl.constexpr,
    GIVEN: tl.constexpr,
    ONE_X: tl.constexpr,
    GATE_BIASED: tl.constexpr,
    UP_BIASED: tl.constexpr,
    DOWN_INPUT: tl.constexpr,
    DOWN: tl.constexpr,
    BATCH: tl.constexpr,
    ROWS: tl.constexpr,
    OWN: tl.constexpr,
    PARTS: tl.constexpr,
    DOWN_PARTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    KIND: tl.constexpr,
    DOWN_KIND: tl.constexpr,
):
    """One program computes its own of the neurons, at most OWN.

    Args:
        gate_x, x: fp32 [BATCH, COLUMNS], what gate and up multiply; the same where ONE_X.
        given: as GIVEN says, nothing; candidates, uint8 [BATCH, I]; or activations, fp32
            [BATCH, I], a of each neuron, 0 where it does not fire.
        out: where DOWN, fp32 [P, BATCH, COLUMNS], sums of rows of down; else fp32 [BATCH, I], h.
        counts: int32 [P, BATCH, 3]: neurons kept, of those with h != 0, candidates.
    """
    # Of one row, x may stay in registers.
    HELD: tl.constexpr = (BATCH == 1) and ONE_X
    gates_of = gate_x
    ups_of = x
    if HELD:
        gates_of = vectors(x, PARTS, COLUMNS)
        ups_of = gates_of
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    own = program + tl.arange(0, OWN) * programs
    wanted = own < neurons
    if GIVEN != "nothing":
        wanted = _any_given(given, own, neurons, BATCH)
        if not DOWN:
            _store_nothing(out, own, (own < neurons) & ~wanted, neurons, BATCH)
    order, number_of = listed(wanted)
    sums = ()
    if DOWN:
        for part in tl.static_range(len(DOWN_PARTS)):
            sums = sums + no_sums(BATCH, DOWN_PARTS, part)
    numbers = _no_numbers(BATCH)
    for first in range(0, number_of, ROWS):
        if not HELD:
            # What is added is 0, but not for the compiler, which would keep all of x in registers.
            gates_of = gate_x + first // neurons * COLUMNS
            ups_of = x + first // neurons * COLUMNS
        number = first + tl.arange(0, ROWS)
        inside = number < number_of
        row = program + number * programs
        if GIVEN != "nothing":
            row = picked(own, wanted, order, number)
        row = tl.where(inside, row, 0).to(tl.int64)
        if GIVEN == "activations":
            a, considered = _activations(given, row, inside, neurons, BATCH)
        else:
            a, considered = _gates(
                gates_of, given, gate_data, gate_scales, gate_data_stride, gate_scale_stride,
                gate_bias, threshold, row, inside, neurons, PHI, GIVEN, GATE_BIASED, HELD, BATCH,
                ROWS, PARTS, COLUMNS, KIND,
            )  # fmt: skip
        fires = _any(a, BATCH)
        if GIVEN == "candidates":
            numbers = _considered(numbers, considered, BATCH)
        if tl.sum(fires.to(tl.int32), axis=0) > 0:
            u = row_products(
                up_data, up_scales, up_data_stride, up_scale_stride, row, fires, ups_of, HELD,
                BATCH, ROWS, PARTS, COLUMNS, KIND,
            )  # fmt: skip
            h = _outputs(a, u, row, fires, up_bias, down_input, PSI, UP_BIASED, DOWN_INPUT, BATCH)
            numbers = _counted(numbers, a, h, BATCH)
            if DOWN:
                used = _any(h, BATCH)
                added = ()
                for part in tl.static_range(len(DOWN_PARTS)):
                    added = added + add_rows(
                        sums, down_data, down_scales, down_data_stride, down_scale_stride, row,
                        used, h, part * BATCH, BATCH, ROWS, DOWN_PARTS, part, COLUMNS, DOWN_KIND,
                    )  # fmt: skip
                sums = added
            else:
                for b in tl.static_range(BATCH):
                    tl.store(out + b * neurons.to(tl.int64) + row, h[b], mask=inside)
        elif not DOWN:
            _store_nothing(out, row, inside, neurons, BATCH)
    if DOWN:
        for part in tl.static_range(len(DOWN_PARTS)):
            store_sums(out, sums, program, part * BATCH, BATCH, DOWN_PARTS, part, COLUMNS)
    store_counts(counts, program, numbers, BATCH, 3)


@triton.jit
def _store_nothing(out, row, mask, neurons, BATCH: tl.constexpr):
    """Sets h of some neurons to 0."""
    for b in tl.static_range(BATCH):
        place = out + b * neurons.to(tl.int64) + row
        tl.store(place, tl.zeros(row.shape, dtype=tl.float32), mask=mask)


@triton.jit
def _any_given(given, own, neurons, BATCH: tl.constexpr):
    """Which of own int32 [S] any row of a batch has something for."""
    wanted = own < 0
    for b in tl.static_range(BATCH):
        place = given + b * neurons.to(tl.int64) + own
        wanted = wanted | (tl.load(place, mask=own < neurons, other=0) != 0)
    return wanted


@triton.jit
def _no_numbers(BATCH: tl.constexpr):
    numbers = ()
    for _ in tl.static_range(3 * BATCH):
        numbers = numbers + (0,)
    return numbers


@triton.jit
def _activations(given, row, inside, neurons, BATCH: tl.constexpr):
    """a fp32 [R] of each row of the batch, twice."""
    a = ()
    for b in tl.static_range(BATCH):
        place = given + b * neurons.to(tl.int64) + row
        a = a + (tl.load(place, mask=inside, other=0.0),)
    return a, a


@triton.jit
def _gates(
    x,
    given,
    data,
    scales,
    data_stride,
    scale_stride,
    bias,
    threshold,
    row,
    inside,
    neurons,
    PHI: tl.constexpr,
    GIVEN: tl.constexpr,
    BIASED: tl.constexpr,
    HELD: tl.constexpr,
    BATCH: tl.constexpr,
    ROWS: tl.constexpr,
    PARTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    KIND: tl.constexpr,
):
    """a fp32 [R] of each row of the batch, 0 where it does not fire, and who were candidates."""
    g = row_products(
        data, scales, data_stride, scale_stride, row, inside, x, HELD, BATCH, ROWS, PARTS,
        COLUMNS, KIND,
    )  # fmt: skip
    least = tl.load(threshold + row, mask=inside, other=0.0)
    added = tl.zeros([ROWS], dtype=tl.float32)
    if BIASED:
        added = tl.load(bias + row, mask=inside, other=0.0)
    a = ()
    considered = ()
    for b in tl.static_range(BATCH):
        candidate = inside
        if GIVEN == "candidates":
            place = given + b * neurons.to(tl.int64) + row
            candidate = tl.load(place, mask=inside, other=0) != 0
        value = phi_of(g[b] + added, PHI)
        # Said by what is dropped, so that NaN, which compares false, is kept.
        keep = candidate & ~((tl.abs(value) < least) | (value == 0))
        a = a + (tl.where(keep, value, 0.0),)
        considered = considered + (candidate,)
    return a, considered


@triton.jit
def _any(values, BATCH: tl.constexpr):
    """Where [R] any of BATCH vectors is not 0."""
    found = values[0] != 0
    for b in tl.static_range(1, BATCH):
        found = found | (values[b] != 0)
    return found


@triton.jit
def _outputs(
    a,
    u,
    row,
    fires,
    up_bias,
    down_input,
    PSI: tl.constexpr,
    UP_BIASED: tl.constexpr,
    DOWN_INPUT: tl.constexpr,
    BATCH: tl.constexpr,
):
    """h fp32 [R] of each row of the batch."""
    h = ()
    for b in tl.static_range(BATCH):
        value = u[b]
        if UP_BIASED:
            value += tl.load(up_bias + row, mask=fires, other=0.0)
        value = tl.where(a[b] != 0, a[b] * psi_of(value, PSI), 0.0)
        if DOWN_INPUT:
            least = tl.load(down_input + row, mask=fires, other=0.0)
            value = tl.where(tl.abs(value) < least, 0.0, value)
        h = h + (value,)
    return h


@triton.jit
def _counted(numbers, a, h, BATCH: tl.constexpr):
    """The numbers with neurons kept and put out added."""
    kept = ()
    live = ()
    rest = ()
    for b in tl.static_range(BATCH):
        kept = kept + (numbers[b] + tl.sum((a[b] != 0).to(tl.int32), axis=0),)
        live = live + (numbers[BATCH + b] + tl.sum((h[b] != 0).to(tl.int32), axis=0),)
        rest = rest + (numbers[2 * BATCH + b],)
    return kept + live + rest


@triton.jit
def _considered(numbers, considered, BATCH: tl.constexpr):
    """The numbers with candidates added."""
    rest = ()
    found = ()
    for b in tl.static_range(BATCH):
        rest = rest + (numbers[b],)
        found = found + (numbers[2 * BATCH + b] + tl.sum(considered[b].to(tl.int32), axis=0),)
    for b in tl.static_range(BATCH):
        rest = rest + (numbers[BATCH + b],)
    return rest + found
