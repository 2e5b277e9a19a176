"""Values and counts of the gated FFN against the fp64 oracle."""

from __future__ import annotations

import itertools

import pytest
import torch
from ffn_oracle import BF16, FP32, VARIANTS, case, oracle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparseinfer.kernels.gated_ffn import FfnWeights
from sparseinfer.kernels.gated_ffn.cpu import CpuGatedFfn
from sparseinfer.kernels.gated_ffn.reference import activation, up_activation
from sparseinfer.kernels.gated_ffn.reference import gated_ffn as reference
from sparseinfer.kernels.isa import isa_available
from sparseinfer.kernels.threads import CpuPool

SHAPES = [(1, 1), (3, 17), (17, 3), (64, 129), (129, 64), (65, 200), (257, 63)]


@pytest.mark.parametrize(("phi", "psi"), VARIANTS)
@pytest.mark.parametrize(("hidden", "intermediate"), SHAPES)
def test_every_form_on_odd_shapes(ffn, hidden, intermediate, phi, psi):
    for dtype, bias, density in itertools.product((FP32, BF16), (False, True), (0, 0.4, 1)):
        x, weights = case(
            hidden, intermediate, phi=phi, psi=psi, dtype=dtype, bias=bias, density=density, rows=3
        )
        oracle(x, weights).check(ffn(weights, x), (dtype, bias, density))


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("density", [0.1, 0.5, 1])
def test_real_shape(ffn, dtype, density):
    x, weights = case(576, 1536, dtype=dtype, density=density)
    oracle(x, weights).check(ffn(weights, x))


def test_more_rows_than_one_pass_takes(ffn):
    x, weights = case(33, 70, rows=37, density=0.3, bias=True)
    oracle(x, weights).check(ffn(weights, x))


def test_density_is_what_the_cases_say():
    x, weights = case(64, 1000, density=0.5)
    assert 0.3 < oracle(x, weights).keep.mean() < 0.7


def test_nothing_kept_leaves_the_bias(ffn):
    x, weights = case(20, 40, density=0, bias=True, rows=2)
    output = ffn(weights, x)
    assert weights.down_bias is not None
    assert torch.equal(output.y, weights.down_bias.expand(2, -1))
    assert output.counts.tolist() == [[0, 0], [0, 0]]


def test_counts_without_doubt(ffn):
    # x = 1: g and u are read off the weights. relu drops neurons 2 and 3, the up side neuron 1.
    gate = torch.tensor([[2.0], [1.0], [0.0], [-1.0], [0.5]])
    up = torch.tensor([[1.0], [-1.0], [1.0], [1.0], [3.0]])
    down = torch.ones(5, 1)
    weights = FfnWeights(gate, up, down, torch.zeros(5), "relu", "relu")
    output = ffn(weights, torch.ones(1, 1))
    assert output.counts.tolist() == [[3, 2]]
    assert output.y.item() == 2.0 + 1.5


def test_threshold_is_inclusive(ffn):
    one = torch.ones(2, 1)
    weights = FfnWeights(one, one, one, torch.tensor([1.0, 1.0001]), "relu", "id")
    output = ffn(weights, torch.ones(1, 1))
    assert output.counts.tolist() == [[1, 1]]
    assert output.y.item() == 1.0


def test_unknown_names():
    with pytest.raises(ValueError, match="phi must be one of"):
        activation("gelu", torch.ones(1))
    with pytest.raises(ValueError, match="psi must be one of"):
        up_activation("silu", torch.ones(1))


def test_reference_in_several_blocks(monkeypatch):
    from sparseinfer.kernels.gated_ffn import reference as module

    x, weights = case(24, 100, density=0.5, bias=True, rows=5)
    monkeypatch.setattr(module, "_COPY_BYTES", 3 * 4 * 24 * 7)
    oracle(x, weights).check(reference(x, weights))


POOLS = {threads: CpuPool(threads) for threads in (1, 2, 3)}


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(
    hidden=st.integers(1, 150),
    intermediate=st.integers(1, 300),
    rows=st.integers(1, 20),
    density=st.floats(0, 1),
    form=st.sampled_from(VARIANTS),
    dtype=st.sampled_from([FP32, BF16]),
    bias=st.booleans(),
    threads=st.sampled_from(sorted(POOLS)),
    isa=st.sampled_from(isa_available()),
    seed=st.integers(0, 2**20),
)
def test_fuzz(hidden, intermediate, rows, density, form, dtype, bias, threads, isa, seed):
    x, weights = case(
        hidden,
        intermediate,
        phi=form[0],
        psi=form[1],
        dtype=dtype,
        bias=bias,
        density=density,
        rows=rows,
        seed=seed,
    )
    oracle(x, weights).check(CpuGatedFfn(weights, POOLS[threads], isa)(x))
