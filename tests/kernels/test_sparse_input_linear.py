"""The input-sparse linear op against fp64: values, what it reads, and its misuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matrices import EPS, bundle, matrix, poison, relative, terms, values
from torch import Tensor

from sparseinfer.kernels.matrix import Matrix
from sparseinfer.kernels.sparse_input_linear.cpu import CpuSparseInputLinear

SHAPES = [(1, 1), (3, 5), (17, 33), (64, 129), (129, 64), (50, 200), (300, 576), (2000, 96)]


def thresholds(x: Tensor, density: float) -> Tensor:
    """[K] that keep about that part of the inputs."""
    if density in (0, 1):
        return torch.full((x.shape[1],), torch.inf if density == 0 else 0.0)
    middle = float(x.abs().quantile(1 - density))
    return middle * (0.5 + torch.rand(x.shape[1], generator=torch.Generator().manual_seed(0)))


def case(inputs: int, outputs: int, format, density: float, rows: int = 1):
    x = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(inputs))
    return x, matrix(inputs, outputs, format, seed=outputs), thresholds(x, density)


@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_values_and_reads(sparse_input_op, format, inputs, outputs):
    for density, biased in ((0, True), (0.1, False), (0.5, True), (1, False)):
        x, weight, threshold = case(inputs, outputs, format, density, rows=5)
        bias = torch.randn(outputs) if biased else None
        added = np.zeros(1) if bias is None else bias.double().numpy()
        kept = (x.abs() >= threshold) & (x != 0)
        sparse = torch.where(kept, x, 0.0).double().numpy()
        want = sparse @ values(weight) + added
        bound = terms(inputs) * EPS * (np.abs(sparse) @ np.abs(values(weight)) + np.abs(added))
        y, reads = sparse_input_op(weight, threshold, bias, x)
        assert y.dtype == torch.float32
        assert (np.abs(y.double().numpy() - want) <= bound).all()
        assert torch.equal(reads, kept.sum(1))
        if outputs > 60 and density == 0.5:
            assert relative(y, torch.from_numpy(want)) < 1e-6


def test_rows_of_dropped_inputs_are_not_read(isa, pool, format):
    for density in (0, 0.1, 0.6):
        x, weight, threshold = case(300, 97, format, density, rows=3)
        unread = ~((x.abs() >= threshold) & (x != 0)).any(0)
        clean = CpuSparseInputLinear(weight, threshold, None, pool, isa)(x)
        bad = poison(weight, unread)
        assert torch.isnan(bad.float()).any()
        for poisoned in (bad, bundle(bad, weight)[0]):
            output = CpuSparseInputLinear(poisoned, threshold, None, pool, isa)(x)
            assert torch.equal(output.y, clean.y)
            assert torch.equal(output.reads, clean.reads)


def test_one_row_does_not_see_what_another_needs(isa, pool, format):
    x, weight, threshold = case(40, 30, format, 1, rows=3)
    x[0, 5] = x[2, 5] = 0.0
    y = CpuSparseInputLinear(poison(weight, torch.arange(40) == 5), threshold, None, pool, isa)(x).y
    assert torch.isnan(y[1]).all()
    assert torch.isfinite(y[[0, 2]]).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_bad_inputs_show(sparse_input_op, format, value):
    x, weight, threshold = case(70, 90, format, 0.5, rows=2)
    x[1, 33] = value
    y, _ = sparse_input_op(weight, threshold, None, x)
    assert torch.isfinite(y[0]).all()
    # A weight of 0 times infinity is NaN, every other one infinite.
    assert not torch.isfinite(y[1]).any()


def test_nan_passes_a_threshold_of_infinity(sparse_input_op):
    x, weight, threshold = case(10, 20, "bf16", 0)
    x[0, 0] = torch.nan
    y, reads = sparse_input_op(weight, threshold, None, x)
    assert torch.isnan(y).all()
    assert reads.tolist() == [1]


def test_threshold_is_inclusive_and_zeros_are_never_read(sparse_input_op):
    weight = Matrix.of(torch.ones(4, 1))
    x = torch.tensor([[1.0, -1.0, 0.0, 2.0]])
    y, reads = sparse_input_op(weight, torch.tensor([1.0, 1.0001, 0.0, 0.5]), None, x)
    assert (y.item(), reads.item()) == (3.0, 2)


def test_a_threshold_changed_in_place_takes_effect(isa, pool, format):
    x, weight, threshold = case(120, 64, format, 1)
    op = CpuSparseInputLinear(weight, threshold, None, pool, isa)
    everything = op(x)
    threshold.fill_(torch.inf)
    assert op(x).reads.tolist() == [0]
    assert not op(x).y.any()
    threshold.zero_()
    assert torch.equal(op(x).y, everything.y)


def test_nothing_kept_leaves_the_bias(sparse_input_op, format):
    x, weight, threshold = case(20, 33, format, 0, rows=2)
    bias = torch.randn(33)
    y, reads = sparse_input_op(weight, threshold, bias, x)
    assert torch.equal(y, bias.expand(2, -1))
    assert reads.tolist() == [0, 0]


def test_no_rows(sparse_input_op):
    _, weight, threshold = case(4, 3, "int8", 1)
    y, reads = sparse_input_op(weight, threshold, None, torch.ones(0, 4))
    assert (y.shape, reads.shape) == ((0, 3), (0,))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threshold": torch.ones(3)}, r"threshold must be \[4\]"),
        ({"threshold": torch.ones(4).double()}, r"threshold must be \[4\] fp32"),
        ({"threshold": torch.ones(8)[::2]}, "threshold must be contiguous"),
        ({"threshold": torch.full((4,), torch.nan)}, "threshold has NaN"),
        ({"bias": torch.ones(4)}, r"bias must be \[3\]"),
        ({"bias": torch.ones(3, device="meta")}, "bias must be contiguous and on cpu"),
        ({"x": torch.ones(4)}, r"x must be \[B, 4\]"),
        ({"x": torch.ones(1, 3)}, r"x must be \[B, 4\]"),
        ({"x": torch.ones(1, 4).half()}, "fp32"),
        ({"x": torch.ones(2, 8)[:, ::2]}, "x must be contiguous"),
        ({"x": torch.ones(1, 4, device="meta")}, "on cpu"),
    ],
)
def test_misuse(sparse_input_op, changes, message):
    arguments = {"threshold": torch.ones(4), "bias": None, "x": torch.ones(1, 4), **changes}
    with pytest.raises(ValueError, match=message):
        sparse_input_op(matrix(4, 3, "int4"), *arguments.values())


def test_variants_must_be_known(pool):
    with pytest.raises(ValueError, match="isa 'sse9' is not available"):
        CpuSparseInputLinear(matrix(4, 3, "int4"), torch.ones(4), None, pool, "sse9")
