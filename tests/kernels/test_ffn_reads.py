"""What the gated FFN must not read, and what it must not lose: NaN in both roles."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from ffn_oracle import BF16, FP32, VARIANTS, case, oracle
from torch import Tensor

from sparseinfer.kernels.gated_ffn import FfnWeights
from sparseinfer.kernels.gated_ffn.cpu import CpuGatedFfn


def poison(matrix: Tensor, rows: np.ndarray) -> Tensor:
    matrix = matrix.clone()
    matrix[torch.from_numpy(rows)] = torch.nan
    return matrix


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize(("phi", "psi"), VARIANTS)
@pytest.mark.parametrize("rows", [1, 4])
def test_skipped_rows_are_not_read(isa, pool, phi, psi, dtype, rows):
    for density in (0, 0.02, 0.4):
        x, weights = case(
            97, 300, phi=phi, psi=psi, dtype=dtype, density=density, rows=rows, bias=True
        )
        answer = oracle(x, weights)
        clean = CpuGatedFfn(weights, pool, isa)(x)
        poisoned = dataclasses.replace(
            weights,
            up=poison(weights.up, ~answer.keep.any(0)),
            down=poison(weights.down, ~answer.live.any(0)),
        )
        assert density == 0.4 or torch.isnan(poisoned.up).any()
        output = CpuGatedFfn(poisoned, pool, isa)(x)
        assert torch.equal(output.y, clean.y)
        assert torch.equal(output.counts, clean.counts)


def test_one_row_does_not_see_what_another_needs(isa, pool):
    x, weights = case(40, 130, phi="relu", psi="relu", rows=2)
    live = oracle(x, weights).live
    only_second = live[1] & ~live[0]
    assert only_second.any()
    bad = dataclasses.replace(weights, down=poison(weights.down, only_second))
    y = CpuGatedFfn(bad, pool, isa)(x).y
    assert torch.equal(y[0], CpuGatedFfn(weights, pool, isa)(x).y[0])
    assert torch.isnan(y[1]).all()


@pytest.mark.parametrize(("phi", "psi"), VARIANTS)
def test_nan_input_reaches_its_row_only(ffn, phi, psi):
    x, weights = case(50, 90, phi=phi, psi=psi, rows=3)
    clean = ffn(weights, x)
    x[1, 7] = torch.nan
    output = ffn(weights, x)
    assert torch.isnan(output.y[1]).all()
    assert output.counts[1].tolist() == [90, 90]
    for row in (0, 2):
        assert torch.allclose(output.y[row], clean.y[row], rtol=1e-5, atol=1e-6)


def test_nan_passes_a_threshold_of_infinity(ffn):
    x, weights = case(10, 20, density=0)
    x[0, 0] = torch.nan
    assert torch.isnan(ffn(weights, x).y).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_bad_weights_of_kept_neurons_show(ffn, value):
    x, weights = case(30, 40, density=1)
    for name in ("gate", "up", "down"):
        matrix = getattr(weights, name).clone()
        matrix[11, 5] = value
        assert not torch.isfinite(ffn(dataclasses.replace(weights, **{name: matrix}), x).y).all()


def test_bad_up_of_a_skipped_neuron_is_exactly_zero(ffn):
    x, weights = case(30, 40, density=1)
    threshold = weights.threshold.clone()
    threshold[3] = torch.inf
    weights = dataclasses.replace(weights, threshold=threshold)
    clean = ffn(weights, x)
    up = weights.up.clone()
    up[3] = torch.inf
    assert torch.equal(ffn(dataclasses.replace(weights, up=up), x).y, clean.y)


def test_infinite_activation_is_kept(ffn):
    weights = FfnWeights(
        torch.full((1, 1), 3e38), torch.ones(1, 1), torch.ones(1, 1), torch.ones(1), "relu2", "id"
    )
    assert ffn(weights, torch.full((1, 1), 2.0)).y.item() == torch.inf


def test_scratch_left_by_another_call_does_not_leak(isa, pool):
    x, weights = case(80, 200, density=0.05, rows=2)
    op = CpuGatedFfn(weights, pool, isa)
    clean = op(x).y
    big_x, big = case(90, 700, density=1, rows=5)
    CpuGatedFfn(big, pool, isa)(big_x.fill_(torch.nan))
    assert torch.equal(op(x).y, clean)
