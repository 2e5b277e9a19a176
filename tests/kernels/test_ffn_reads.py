"""What the gated FFN must not read, and what it must not lose: NaN in both roles."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from ffn_oracle import VARIANTS, case, oracle, small
from matrices import bundle, poison, quantised

from sparseinfer.kernels.gated_ffn.cpu import CpuGatedFfn
from sparseinfer.kernels.matrix import Matrix

BAD = [torch.nan, torch.inf, -torch.inf]


@pytest.mark.parametrize(("phi", "psi"), VARIANTS)
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("bundled", [False, True])
def test_skipped_rows_are_not_read(isa, pool, format, phi, psi, rows, bundled):
    for density in (0, 0.02, 0.4):
        x, weights = case(
            97, 300, phi=phi, psi=psi, format=format, density=density, rows=rows, bias=True
        )
        answer = oracle(x, weights)
        clean = CpuGatedFfn(weights, pool, isa)(x)
        up, down = poison(weights.up, answer.up_unread), poison(weights.down, answer.down_unread)
        assert density == 0.4 or torch.isnan(up.float()).any()
        if bundled:
            up, down = bundle(up, down)
        output = CpuGatedFfn(dataclasses.replace(weights, up=up, down=down), pool, isa)(x)
        assert torch.equal(output.y, clean.y)
        assert torch.equal(output.counts, clean.counts)


def test_one_row_does_not_see_what_another_needs(isa, pool, format):
    x, weights = case(40, 130, phi="relu", psi="relu", format=format, rows=6)
    answer = oracle(x, weights)
    only_second = answer.live[1] & ~(answer.live | answer.unsure_down)[[0, 2, 3, 4, 5]].any(0)
    assert only_second.any()
    bad = dataclasses.replace(weights, down=poison(weights.down, torch.from_numpy(only_second)))
    y = CpuGatedFfn(bad, pool, isa)(x).y
    clean = CpuGatedFfn(weights, pool, isa)(x).y
    for row in (0, 2, 3, 4, 5):
        assert torch.equal(y[row], clean[row])
    assert torch.isnan(y[1]).all()


@pytest.mark.parametrize(("phi", "psi"), VARIANTS)
def test_nan_input_reaches_its_row_only(ffn, format, phi, psi):
    x, weights = case(50, 90, phi=phi, psi=psi, format=format, rows=6)
    clean = ffn(weights, x)
    x[1, 7] = torch.nan
    output = ffn(weights, x)
    assert torch.isnan(output.y[1]).all()
    assert output.counts[1].tolist() == [90, 90]
    for row in (0, 2, 3, 4, 5):
        assert torch.allclose(output.y[row], clean.y[row], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("column", [0, 31, 32, 63, 64, 149])
def test_infinite_input_shows_wherever_it_is(ffn, format, value, column):
    x, weights = case(150, 90, format=format, density=1, rows=2)
    x[1, column] = value
    y = ffn(weights, x).y
    assert torch.isfinite(y[0]).all()
    assert not torch.isfinite(y[1]).any()


def test_nan_passes_a_threshold_of_infinity(ffn, format):
    x, weights = case(10, 20, format=format, density=0)
    x[0, 0] = torch.nan
    assert torch.isnan(ffn(weights, x).y).all()


@pytest.mark.parametrize("name", ["gate", "up", "down"])
def test_bad_weights_of_kept_neurons_show(ffn, format, name):
    x, weights = case(70, 40, format=format, density=1)
    original: Matrix = getattr(weights, name)
    for value in BAD:
        data = original.data.clone()
        if quantised(format):
            data[11, 2:4] = torch.tensor([value], dtype=torch.float16).view(torch.uint8)
        else:
            data[11, 35] = value
        bad = dataclasses.replace(weights, **{name: Matrix(format, data, 70)})
        assert not torch.isfinite(ffn(bad, x).y).all()


def test_bad_up_of_a_skipped_neuron_is_exactly_zero(ffn, format):
    x, weights = case(30, 40, format=format, density=1)
    threshold = weights.threshold.clone()
    threshold[3] = torch.inf
    weights = dataclasses.replace(weights, threshold=threshold)
    clean = ffn(weights, x)
    third = torch.arange(40) == 3
    bad = dataclasses.replace(weights, up=poison(weights.up, third))
    assert torch.equal(ffn(bad, x).y, clean.y)


def test_infinite_activation_is_kept(ffn):
    one = torch.ones(1, 1)
    weights = small(torch.full((1, 1), 3e38), one, one, torch.ones(1), "relu2", "id")
    assert ffn(weights, torch.full((1, 1), 2.0)).y.item() == torch.inf


def test_scratch_left_by_another_call_does_not_leak(isa, pool, format):
    x, weights = case(80, 200, format=format, density=0.05, rows=2)
    op = CpuGatedFfn(weights, pool, isa)
    clean = op(x).y
    big_x, big = case(90, 700, format=format, density=1, rows=5)
    CpuGatedFfn(big, pool, isa)(big_x.fill_(torch.nan))
    assert torch.equal(op(x).y, clean)
