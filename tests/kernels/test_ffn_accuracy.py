"""Values and counts of the gated FFN against the fp64 oracle."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from ffn_oracle import VARIANTS, case, oracle, small
from matrices import bundle, matrix, relative, values

from sparseinfer.kernels.gated_ffn import FfnWeights
from sparseinfer.kernels.gated_ffn.activations import activation, up_activation
from sparseinfer.kernels.gated_ffn.cpu import CpuGatedFfn
from sparseinfer.kernels.gated_ffn.reference import gated_ffn as reference

SHAPES = [(1, 1), (3, 5), (17, 33), (64, 129), (200, 65)]
CASES = [(True, 0), (False, 0.4), (True, 0.4), (False, 1)]


@pytest.mark.parametrize(("phi", "psi"), VARIANTS)
@pytest.mark.parametrize(("hidden", "intermediate"), SHAPES)
def test_every_form_on_odd_shapes(ffn, format, hidden, intermediate, phi, psi):
    for seed, (bias, density) in enumerate(CASES):
        x, weights = case(
            hidden,
            intermediate,
            phi=phi,
            psi=psi,
            format=format,
            bias=bias,
            density=density,
            rows=5,
            seed=seed,
        )
        oracle(x, weights, ffn.rounds_inputs).check(ffn(weights, x), (bias, density))


@pytest.mark.parametrize("density", [0.1, 0.5, 1])
@pytest.mark.parametrize(("hidden", "intermediate"), [(576, 1536), (1040, 600)])
def test_real_widths(ffn, format, density, hidden, intermediate):
    x, weights = case(hidden, intermediate, format=format, density=density, seed=1)
    oracle(x, weights, ffn.rounds_inputs).check(ffn(weights, x))


def test_more_rows_than_one_pass_takes(ffn, format):
    x, weights = case(33, 70, format=format, rows=37, density=0.3, bias=True)
    oracle(x, weights, ffn.rounds_inputs).check(ffn(weights, x))


def test_density_is_what_the_cases_say(format):
    x, weights = case(64, 1000, format=format, density=0.5)
    assert 0.4 < oracle(x, weights).keep.mean() < 0.6


def test_the_tolerance_notices_one_neuron(format):
    """Otherwise a kernel could drop neurons and pass."""
    x, weights = case(576, 1536, format=format, density=0.5)
    answer = oracle(x, weights)
    kept = torch.from_numpy(abs(answer.a[0]) * answer.keep[0])
    ordinary = int(kept.argsort()[-int(answer.keep[0].sum()) // 2])
    threshold = weights.threshold.clone()
    threshold[ordinary] = torch.inf
    other = oracle(x, dataclasses.replace(weights, threshold=threshold))
    off = relative(torch.from_numpy(other.y), torch.from_numpy(answer.y))
    assert off > answer.near


def test_rows_of_up_and_down_side_by_side_change_no_bit(isa, pool, format):
    for hidden in (40, 200):
        x, plain = case(hidden, 150, format=format, density=0.4, rows=3, bias=True)
        up, down = bundle(plain.up, plain.down)
        assert up.row_stride_bytes == 2 * plain.up.row_stride_bytes
        biases = (plain.gate_bias, plain.up_bias, plain.down_bias)
        bundled = FfnWeights(plain.gate, up, down, plain.threshold, "silu", "id", *biases)
        expected = CpuGatedFfn(plain, pool, isa)(x)
        output = CpuGatedFfn(bundled, pool, isa)(x)
        assert torch.equal(output.y, expected.y)
        assert torch.equal(output.counts, expected.counts)


def test_nothing_kept_leaves_the_bias(ffn, format):
    x, weights = case(20, 40, format=format, density=0, bias=True, rows=2)
    output = ffn(weights, x)
    assert weights.down_bias is not None
    assert torch.equal(output.y, weights.down_bias.expand(2, -1))
    assert output.counts.tolist() == [[0, 0], [0, 0]]


def test_inputs_of_zero_are_exactly_zero(ffn, format):
    _, weights = case(70, 90, format=format, density=1)
    output = ffn(weights, torch.zeros(2, 70))
    assert torch.equal(output.y, torch.zeros(2, 70))
    assert output.counts.tolist() == [[0, 0], [0, 0]]


def test_inputs_of_very_different_size_in_one_row(ffn, format):
    """Groups of inputs have scales of their own."""
    x, weights = case(192, 100, phi="relu", format=format, density=1, rows=2)
    x[:, :32] *= 1e-12
    x[:, 64:] *= 1e-6
    oracle(x, weights, ffn.rounds_inputs).check(ffn(weights, x))


def test_counts_without_doubt(ffn):
    # x = 1: g and u are read off the weights. relu drops neurons 2 and 3, the up side neuron 1.
    gate = torch.tensor([[2.0], [1.0], [0.0], [-1.0], [0.5]])
    up = torch.tensor([[1.0], [-1.0], [1.0], [1.0], [3.0]])
    weights = small(gate, up, torch.ones(5, 1), torch.zeros(5), "relu", "relu")
    output = ffn(weights, torch.ones(1, 1))
    assert output.counts.tolist() == [[3, 2]]
    assert output.y.item() == 2.0 + 1.5


def test_threshold_is_inclusive(ffn):
    one = torch.ones(2, 1)
    weights = small(one, one, one, torch.tensor([1.0, 1.0001]), "relu", "id")
    output = ffn(weights, torch.ones(1, 1))
    assert output.counts.tolist() == [[1, 1]]
    assert output.y.item() == 1.0


def test_a_threshold_changed_in_place_takes_effect(isa, pool, format):
    x, weights = case(60, 200, phi="relu", format=format, density=1)
    op = CpuGatedFfn(weights, pool, isa)
    everything = op(x)
    limit = float(oracle(x, weights).a.max()) / 2
    weights.threshold.fill_(limit)
    assert 0 < int(op(x).counts[0, 0]) < int(everything.counts[0, 0])
    weights.threshold.fill_(torch.inf)
    assert op(x).counts.tolist() == [[0, 0]]
    weights.threshold.zero_()
    assert torch.equal(op(x).y, everything.y)


def test_unknown_names():
    with pytest.raises(ValueError, match="phi must be one of"):
        activation("gelu", torch.ones(1))
    with pytest.raises(ValueError, match="psi must be one of"):
        up_activation("silu", torch.ones(1))


def test_reference_in_several_blocks(monkeypatch, format):
    x, weights = case(24, 100, format=format, density=0.5, bias=True, rows=5)
    monkeypatch.setattr("sparseinfer.kernels.products._COPY_BYTES", 4 * 24 * 7)
    oracle(x, weights, rounds_inputs=False).check(reference(x, weights))


def test_quantised_cases_are_not_the_exact_ones():
    """The oracle works on the values that the bits stand for."""
    exact = values(matrix(9, 70, "fp32"))
    for format, least in (("bf16", 1e-3), ("int8", 2e-3), ("int4", 3e-2)):
        off = abs(values(matrix(9, 70, format)) - exact).max() / abs(exact).max()
        assert least < off < 10 * least
