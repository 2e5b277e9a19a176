"""The linear op against fp64, and its misuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matrices import LEVELS, NEAR, bundle, matrix, poison, product, quantised, relative

from sparseinfer.kernels.linear.cpu import CpuLinear
from sparseinfer.kernels.linear.reference import linear
from sparseinfer.kernels.matrix import Matrix

SHAPES = [
    (1, 1),
    (5, 3),
    (33, 17),
    (64, 129),
    (129, 64),
    (200, 50),
    (255, 256),
    (576, 960),
    (1030, 40),
    (2080, 33),
]


@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
@pytest.mark.parametrize("rows", [1, 5])
def test_values(linear_op, format, inputs, outputs, rows):
    weight = matrix(outputs, inputs, format, seed=inputs)
    random = torch.Generator().manual_seed(outputs)
    x = torch.randn(rows, inputs, generator=random)
    for bias in (None, torch.randn(outputs, generator=random)):
        added = np.zeros(1) if bias is None else bias.double().numpy()
        want, bound = product(
            x.double().numpy(), weight, added, rounds_inputs=linear_op.rounds_inputs
        )
        got = linear_op(weight, bias, x)
        assert got.dtype == torch.float32
        assert (np.abs(got.double().numpy() - want) <= bound).all()
        if outputs >= 33:
            assert relative(got, torch.from_numpy(want)) < NEAR[format]


@pytest.mark.parametrize("format", LEVELS)
def test_inputs_on_the_levels_that_quantised_rows_see_are_exact(linear_op, format):
    most = LEVELS[format]
    weight = matrix(20, 64, format)
    random = torch.Generator().manual_seed(0)
    x = torch.randint(-most, most + 1, (3, 64), generator=random).float()
    x[:, ::32] = float(most)
    assert relative(linear_op(weight, None, x), x.double() @ weight.float().double().T) < 1e-6
    x = x * 0.9
    x[:, ::32] = float(most)
    got, want = linear_op(weight, None, x), x.double() @ weight.float().double().T
    assert relative(got, want) < 1 / most
    if linear_op.rounds_inputs:
        assert relative(got, want) > 0.05 / most


@pytest.mark.parametrize("size", [1e-36, 1e-30, 1e-20, 1e20, 1e30])
def test_very_small_and_large_inputs(linear_op, format, size):
    weight, x = matrix(40, 70, format), torch.randn(2, 70, generator=torch.Generator()) * size
    want, _ = product(x.double().numpy(), weight, rounds_inputs=linear_op.rounds_inputs)
    got = linear_op(weight, None, x)
    assert torch.isfinite(got).all()
    # Below 1e-30 quantised rows may take a group for zeros; what is lost has no effect on anything.
    if size > 1e-30 or not quantised(format):
        assert relative(got, torch.from_numpy(want)) < 1e-4


def test_rows_that_lie_apart_change_no_bit(isa, pool, format):
    x = torch.randn(5, 200)
    first, second = matrix(70, 200, format, 1), matrix(70, 200, format, 2)
    for weight, apart in zip((first, second), bundle(first, second), strict=True):
        expected = CpuLinear(weight, None, pool, isa)(x)
        assert torch.equal(CpuLinear(apart, None, pool, isa)(x), expected)


def test_more_rows_than_one_pass_takes(linear_op, format):
    weight, x = matrix(50, 96, format), torch.randn(37, 96)
    want, bound = product(x.double().numpy(), weight, rounds_inputs=linear_op.rounds_inputs)
    assert (np.abs(linear_op(weight, None, x).double().numpy() - want) <= bound).all()


def test_reference_in_several_blocks(monkeypatch):
    monkeypatch.setattr("sparseinfer.kernels.products._COPY_BYTES", 4 * 32 * 5)
    weight, bias, x = matrix(52, 32, "int8"), torch.randn(52), torch.randn(3, 32)
    want = torch.nn.functional.linear(x.double(), weight.float().double(), bias.double())
    assert torch.allclose(linear(x, weight, bias).double(), want, atol=1e-4)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_bad_values_propagate(linear_op, format, value):
    weight, x = matrix(40, 70, format), torch.randn(6, 70)
    y = linear_op(poison(weight, torch.arange(40) == 7), None, x)
    assert torch.isnan(y[:, 7]).all()
    assert torch.isfinite(y[:, :7]).all()
    assert torch.isfinite(y[:, 8:]).all()
    for column in (0, 2, 33, 64, 69):
        bad = x.clone()
        bad[1, column] = value
        y = linear_op(weight, None, bad)
        assert not torch.isfinite(y[1]).any()
        assert torch.isfinite(y[[0, 2, 3, 4, 5]]).all()


@pytest.mark.parametrize(
    ("weight", "bias", "message"),
    [
        (torch.ones(4, 4), torch.ones(5), "bias must be"),
        (torch.ones(4, 4), torch.ones(4).bfloat16(), r"bias must be torch\.float32"),
        (torch.ones(4, 4), torch.ones(8)[::2], "bias must be contiguous"),
        (torch.ones(4, 4), torch.ones(4, device="meta"), "bias is on meta"),
        (torch.ones(4, 4, device="meta"), None, "CPU"),
    ],
)
def test_wrong_weights(pool, weight, bias, message):
    with pytest.raises(ValueError, match=message):
        CpuLinear(Matrix.of(weight), bias, pool)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.ones(4), "x must be"),
        (torch.ones(1, 5), "x must be"),
        (torch.ones(1, 4).bfloat16(), "float32"),
        (torch.ones(3, 8)[:, ::2], "contiguous"),
        (torch.ones(1, 4, device="meta"), "meta"),
    ],
)
def test_wrong_input(linear_op, format, x, message):
    with pytest.raises(ValueError, match=message):
        linear_op(matrix(2, 4, format), None, x)
