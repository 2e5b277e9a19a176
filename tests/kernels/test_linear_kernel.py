"""The linear op against fp64, and its misuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparseinfer.kernels.linear.cpu import CpuLinear
from sparseinfer.kernels.linear.reference import linear

SHAPES = [(1, 1), (3, 17), (17, 3), (64, 129), (129, 64), (255, 256), (576, 1536)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
@pytest.mark.parametrize("rows", [1, 5])
def test_values(linear_op, inputs, outputs, rows, dtype):
    random = torch.Generator().manual_seed(inputs)
    weight = torch.randn(outputs, inputs, generator=random).to(dtype)
    x = torch.randn(rows, inputs, generator=random)
    for bias in (None, torch.randn(outputs, generator=random)):
        added = np.zeros(1) if bias is None else bias.double().numpy()
        want = x.double().numpy() @ weight.double().numpy().T + added
        # n products and a bias summed in fp32, in any order, are off by at most this.
        size = x.abs().double().numpy() @ weight.abs().double().numpy().T + np.abs(added)
        bound = (inputs + 2) * np.finfo(np.float32).eps * size
        got = linear_op(weight, bias, x)
        assert got.dtype == torch.float32
        assert (np.abs(got.double().numpy() - want) <= bound).all()


def test_reference_in_several_blocks(monkeypatch):
    from sparseinfer.kernels.linear import reference as module

    monkeypatch.setattr(module, "_COPY_BYTES", 4 * 32 * 5)
    weight, bias, x = torch.randn(52, 32).bfloat16(), torch.randn(52), torch.randn(3, 32)
    want = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
    assert torch.allclose(linear(x, weight, bias).double(), want, atol=1e-4)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_bad_values_propagate(linear_op, value):
    weight, x = torch.randn(40, 30).bfloat16(), torch.randn(3, 30)
    weight[7, 3] = value
    y = linear_op(weight, None, x)
    assert not torch.isfinite(y[:, 7]).any()
    assert torch.isfinite(y[:, :7]).all()
    x[1, 2] = torch.nan
    assert torch.isnan(linear_op(weight, None, x)[1]).all()


@pytest.mark.parametrize(
    ("weight", "bias", "message"),
    [
        (torch.ones(4), None, r"\[N, K\]"),
        (torch.ones(0, 4), None, "not empty"),
        (torch.ones(4, 4).half(), None, "float32 or bfloat16"),
        (torch.ones(4, 6)[:, :4], None, "contiguous"),
        (torch.ones(4, 4), torch.ones(5), "bias must be"),
        (torch.ones(4, 4), torch.ones(4).bfloat16(), "bias must be torch.float32"),
        (torch.ones(4, 4), torch.ones(8)[::2], "bias must be contiguous"),
        (torch.ones(4, 4, device="meta"), None, "CPU"),
    ],
)
def test_wrong_weights(pool, weight, bias, message):
    with pytest.raises(ValueError, match=message):
        CpuLinear(weight, bias, pool)


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
def test_wrong_input(linear_op, x, message):
    with pytest.raises(ValueError, match=message):
        linear_op(torch.ones(2, 4), None, x)
