"""Random shapes, densities, formats, batches, thread counts and variants against fp64."""

from __future__ import annotations

import numpy as np
import torch
from decoder_oracle import feed, near_nothing, text, tolerance, toy
from ffn_oracle import VARIANTS, case, oracle
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from matrices import EPS, bundle, matrix, product, relative, terms, values

from sparseinfer.kernels.gated_ffn.cpu import CpuGatedFfn
from sparseinfer.kernels.input_mask import PROJECTIONS
from sparseinfer.kernels.isa import isa_available
from sparseinfer.kernels.linear.cpu import CpuLinear
from sparseinfer.kernels.matrix import FORMATS
from sparseinfer.kernels.sparse_input_linear.cpu import CpuSparseInputLinear
from sparseinfer.kernels.threads import CpuPool

POOLS = {threads: CpuPool(threads) for threads in (1, 2, 3, 5)}

COMMON = {
    "format": st.sampled_from(FORMATS),
    "threads": st.sampled_from(sorted(POOLS)),
    "isa": st.sampled_from(isa_available()),
    "seed": st.integers(0, 2**20),
}
LARGE = st.one_of(st.integers(1, 200), st.integers(1, 20).map(lambda n: 64 * n))


def fuzz(examples: int):
    return settings(
        max_examples=examples,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
        derandomize=True,
        phases=[Phase.generate],  # shrinking a failure could take minutes
    )


@fuzz(200)
@given(
    hidden=LARGE,
    intermediate=st.integers(1, 300),
    rows=st.integers(1, 20),
    density=st.floats(0, 1),
    form=st.sampled_from(VARIANTS),
    bias=st.booleans(),
    **COMMON,
)
def test_gated_ffn(hidden, intermediate, rows, density, form, bias, format, threads, isa, seed):
    x, weights = case(
        hidden,
        intermediate,
        phi=form[0],
        psi=form[1],
        format=format,
        bias=bias,
        density=density,
        rows=rows,
        seed=seed,
    )
    oracle(x, weights).check(CpuGatedFfn(weights, POOLS[threads], isa)(x))


@fuzz(100)
@given(inputs=LARGE, outputs=st.integers(1, 300), rows=st.integers(1, 20), **COMMON)
def test_linear(inputs, outputs, rows, format, threads, isa, seed):
    weight, random = matrix(outputs, inputs, format, seed), torch.Generator().manual_seed(seed)
    if seed % 2:
        weight = bundle(matrix(outputs, inputs, format), weight)[1]
    x, bias = torch.randn(rows, inputs, generator=random), torch.randn(outputs, generator=random)
    x_, bias_ = x.double().numpy(), bias.double().numpy()
    got = CpuLinear(weight, bias, POOLS[threads], isa)(x).double().numpy()
    want, bound = product(x_, weight, bias_, rounds_inputs=True)
    assert (np.abs(got - want) <= bound).all()


@fuzz(100)
@given(
    inputs=st.integers(1, 300),
    outputs=LARGE,
    rows=st.integers(1, 20),
    threshold=st.floats(0, 3, width=32),
    **COMMON,
)
def test_sparse_input_linear(inputs, outputs, rows, threshold, format, threads, isa, seed):
    weight, random = matrix(inputs, outputs, format, seed), torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inputs, generator=random)
    limit = torch.full((inputs,), threshold)
    kept = (x.abs() >= limit) & (x != 0)
    sparse = torch.where(kept, x, 0.0).double().numpy()
    y, reads = CpuSparseInputLinear(weight, limit, None, POOLS[threads], isa)(x)
    assert torch.equal(reads, kept.sum(1))
    error = np.abs(y.double().numpy() - sparse @ values(weight))
    bound = terms(inputs) * EPS * (np.abs(sparse) @ np.abs(values(weight)))
    assert (error <= bound).all()


@fuzz(60)
@given(
    group=st.integers(1, 4),
    kv_heads=st.integers(1, 3),
    head_dim=st.integers(1, 40).map(lambda half: 2 * half),
    hidden=st.integers(2, 200),
    intermediate=st.integers(1, 150),
    layers=st.integers(1, 3),
    window=st.one_of(st.none(), st.integers(1, 12)),
    bias=st.booleans(),
    tied=st.booleans(),
    chunk=st.integers(1, 10),
    **COMMON,
)
def test_decoder(
    group,
    kv_heads,
    head_dim,
    hidden,
    intermediate,
    layers,
    window,
    bias,
    tied,
    chunk,
    format,
    threads,
    isa,
    seed,
):
    model = toy(
        format,
        heads=group * kv_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        hidden=hidden,
        intermediate=intermediate,
        layers=layers,
        window=window,
        bias=bias,
        tied=tied,
        seed=seed,
    )
    ids = text(10, seed)
    decoder = model.decoder(POOLS[threads], isa)
    logits, _ = feed(decoder, model.tables(10), model.sequence(), ids, chunk)
    assert relative(logits, model.answer(ids)[0]) < 5 * tolerance(format, torch.float32, layers)


@fuzz(60)
@given(
    kv_heads=st.integers(1, 2),
    head_dim=st.integers(1, 40).map(lambda half: 2 * half),
    hidden=st.integers(2, 260),
    intermediate=st.integers(1, 260),
    sparse=st.sets(st.sampled_from(PROJECTIONS)),
    by_input=st.sets(st.sampled_from(PROJECTIONS[:-1])),
    density=st.floats(0.1, 0.9),
    phi=st.sampled_from(["silu", "relu"]),
    bias=st.booleans(),
    input_relu=st.booleans(),
    chunk=st.integers(1, 10),
    **COMMON,
)
def test_decoder_with_thresholds_on_inputs(
    kv_heads,
    head_dim,
    hidden,
    intermediate,
    sparse,
    by_input,
    density,
    phi,
    bias,
    input_relu,
    chunk,
    format,
    threads,
    isa,
    seed,
):
    model = toy(
        format,
        heads=2 * kv_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        hidden=hidden,
        intermediate=intermediate,
        phi=phi,
        bias=bias,
        sparse=sparse,
        by_input=by_input,
        input_relu=input_relu,
        seed=seed,
    )
    ids = text(10, seed)
    model.answer(ids, near_nothing(density, seed))
    decoder = model.decoder(POOLS[threads], isa)
    logits, counts = feed(decoder, model.tables(10), model.sequence(), ids, chunk)
    expected, wanted = model.answer(ids)
    assert relative(logits, expected) < 5 * tolerance(format, torch.float32, 2)
    if format in ("fp32", "bf16"):
        assert torch.equal(counts.long(), wanted)
