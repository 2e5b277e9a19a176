"""The decode linear op in Triton against fp64."""

from __future__ import annotations

import pytest
import torch
from gpu_cases import DEVICE, close, gpu_matrix, normal
from matrices import bundle, poison

from sparseinfer.kernels.gpu_rows import RowTile
from sparseinfer.kernels.linear.gpu import GpuLinear
from sparseinfer.kernels.matrix import Matrix

FORMATS = ("fp32", "bf16", "fp16", "int8", "int4")
SHAPES = [(1, 1), (33, 17), (130, 5), (255, 9)]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_values(format, inputs, outputs):
    weight = gpu_matrix(outputs, inputs, format, seed=inputs)
    bias = normal(outputs, seed=3).to(DEVICE)
    rows, added = (1, None) if inputs % 2 else (3, bias)
    x = normal(rows, inputs, seed=outputs).to(DEVICE)
    y = GpuLinear(weight, added)(x)
    assert y.dtype == torch.float32
    close(y, x, weight, added)


@pytest.mark.parametrize("format", ["bf16", "int4"])
def test_more_rows_than_one_pass_takes(format):
    weight = gpu_matrix(7, 70, format)
    x = normal(19, 70).to(DEVICE)
    op = GpuLinear(weight, None)
    everything = op(x)
    close(everything, x, weight)
    for rows in (1, 2, 5):
        torch.testing.assert_close(op(x[:rows]), everything[:rows], atol=1e-6, rtol=1e-6)
    assert op(x[:0]).shape == (0, 7)


@pytest.mark.parametrize("format", ["bf16", "int4"])
@pytest.mark.parametrize("tile", [RowTile(1, 64, 1), RowTile(16, 128, 2), RowTile(4, 256, 4)])
def test_every_tile_computes_the_same(format, tile):
    weight, x = gpu_matrix(5, 100, format), normal(2, 100).to(DEVICE)
    close(GpuLinear(weight, None, tile)(x), x, weight)


@pytest.mark.parametrize("format", ["bf16", "int8", "int4"])
def test_rows_that_lie_apart_change_no_bit(format):
    x = normal(2, 70).to(DEVICE)
    first, second = gpu_matrix(13, 70, format, 1), gpu_matrix(13, 70, format, 2)
    for weight, apart in zip((first, second), bundle(first, second), strict=True):
        assert torch.equal(GpuLinear(apart, None)(x), GpuLinear(weight, None)(x))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of numpy, in the interpreter
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("format", ["bf16", "int8", "int4"])
def test_bad_values_show_where_they_belong(format, value):
    weight, x = gpu_matrix(12, 70, format), normal(3, 70).to(DEVICE)
    y = GpuLinear(poison(weight, torch.arange(12, device=DEVICE) == 7), None)(x)
    assert torch.isnan(y[:, 7]).all()
    assert torch.isfinite(y[:, torch.arange(12) != 7]).all()
    x[1, 33] = value
    y = GpuLinear(weight, None)(x)
    assert not torch.isfinite(y[1]).any()
    assert torch.isfinite(y[[0, 2]]).all()


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
def test_wrong_input(x, message):
    x = x if x.is_meta else x.to(DEVICE)
    with pytest.raises(ValueError, match=message):
        GpuLinear(Matrix.of(torch.ones(2, 4, device=DEVICE)), None)(x)


def test_wrong_weights():
    with pytest.raises(ValueError, match="bias must be"):
        GpuLinear(gpu_matrix(4, 4, "bf16"), torch.ones(5, device=DEVICE))
    with pytest.raises(ValueError, match="CUDA device, not on meta"):
        GpuLinear(Matrix.of(torch.ones(4, 4, device="meta")), None)
