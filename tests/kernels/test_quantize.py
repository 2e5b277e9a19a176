"""Rounding weights: errors, scales at the ends of fp16, and the rule that int4 must beat."""

from __future__ import annotations

import pytest
import torch

from sparseinfer.kernels import quantize as module
from sparseinfer.kernels.matrix import GROUP, Matrix, row_bytes, scales_per_row
from sparseinfer.kernels.quantize import quantize

SMALLEST = 2.0**-24
"""The smallest fp16 number above 0."""


def normal(rows: int, columns: int, scale: float = 0.02, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(rows, columns, generator=generator)


def heavy_tailed(rows: int, columns: int) -> torch.Tensor:
    return normal(rows, columns) * (1 + normal(rows, columns, 3, seed=1).square())


def scales_of(matrix: Matrix) -> torch.Tensor:
    count = 2 * scales_per_row(matrix.columns)
    return matrix.data[:, :count].contiguous().view(torch.float16).float()


def grouped(weight: torch.Tensor) -> torch.Tensor:
    """[rows, groups, 32], padded with zeros."""
    rows, columns = weight.shape
    groups = scales_per_row(columns)
    padded = torch.zeros(rows, groups * GROUP)
    padded[:, :columns] = weight
    return padded.view(rows, groups, GROUP)


def q4_0(weight: torch.Tensor) -> torch.Tensor:
    """llama.cpp's rule, value by value: codes by the exact scale, values by the fp16 one."""
    groups = grouped(weight)
    position = groups.abs().argmax(2, keepdim=True)
    scale = groups.gather(2, position) / -8
    inverse = torch.where(scale == 0, 0, 1 / scale)
    codes = (groups * inverse + 8.5).floor().clamp(max=15) - 8
    return codes * scale.half().float()


@pytest.mark.parametrize("columns", [1, 31, 32, 33, 64, 96, 128, 130, 576])
@pytest.mark.parametrize("format", ["int8", "int4"])
def test_values_are_within_half_a_step(format, columns):
    weight = heavy_tailed(7, columns)
    matrix = quantize(weight, format)
    assert matrix.shape == (7, columns)
    assert matrix.data.shape == (7, row_bytes(format, columns))
    error = grouped(matrix.float() - weight).abs()
    scales = scales_of(matrix).abs()[:, :, None]
    if format == "int8":
        assert bool((error <= scales * 0.5001).all())
    else:  # what is clipped may be further off, but never so much that it pays
        inside = grouped(weight).abs() <= 7 * scales
        assert bool((error <= scales * 0.5001)[inside].all())
    assert 0 < float(error.norm() / weight.norm()) < {"int8": 0.02, "int4": 0.2}[format]


@pytest.mark.parametrize("make", [normal, heavy_tailed], ids=["normal", "heavy-tailed"])
@pytest.mark.parametrize("columns", [32, 100, 576])
def test_int4_is_no_worse_than_q4_0_in_any_group(make, columns):
    weight = make(50, columns)
    own = grouped(quantize(weight, "int4").float() - weight).square().sum(2)
    theirs = (q4_0(weight) - grouped(weight)).square().sum(2)
    assert bool((own <= theirs * (1 + 1e-5)).all())
    assert float(own.sum()) < 0.97 * float(theirs.sum())


@pytest.mark.parametrize("columns", [32, 64, 128, 192])
def test_weights_on_the_grid_are_kept_exactly(columns):
    codes = torch.randint(-8, 8, (9, columns), generator=torch.Generator().manual_seed(0)).float()
    codes[:, ::GROUP] = -8
    scales = torch.tensor([0.25, 1.0, -0.5, 3.0, 2.0**-14, 1000.0, 0.01, -7.0, 1.0])
    weight = codes * scales.half().float()[:, None]
    assert torch.equal(quantize(weight, "int4").float(), weight)
    codes = torch.randint(-127, 128, (9, columns), generator=torch.Generator().manual_seed(0))
    codes[:, ::GROUP] = 127
    weight = codes * scales.half().float()[:, None]
    assert torch.equal(quantize(weight, "int8").float(), weight)


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_groups_of_zeros_and_padding_are_zero(format):
    weight = torch.zeros(3, 100)
    weight[1, 40] = 1.0
    values = quantize(weight, format).float()
    assert torch.equal(values != 0, weight != 0)
    assert float(values[1, 40]) == pytest.approx(1, abs=1e-3)
    assert bool(torch.isfinite(scales_of(quantize(weight, format))).all())


@pytest.mark.parametrize("format", ["int8", "int4"])
@pytest.mark.parametrize("largest", [SMALLEST / 8, SMALLEST, 100 * SMALLEST, 1e-5, 3e-5, 1e-3])
def test_tiny_weights_are_never_cut_off(format, largest):
    """Where scales are among the coarse fp16 numbers near 0."""
    weight = largest * torch.linspace(-1, 1, 64)[None]
    matrix = quantize(weight, format)
    error = (matrix.float() - weight).abs().max()
    steps = {"int8": 127, "int4": 7}[format]
    assert float(error) <= max(0.51 * largest / steps, SMALLEST)


@pytest.mark.parametrize(
    ("format", "fits", "too_large"), [("int8", 8e6, 8.4e6), ("int4", 4.5e5, 4.7e5)]
)
def test_weights_beyond_the_largest_scale_are_refused(format, fits, too_large):
    weight = torch.ones(2, 64)
    weight[1, 3] = fits
    assert float(quantize(weight, format).float()[1, 3]) == pytest.approx(fits, rel=0.08)
    weight[1, 3] = -too_large
    with pytest.raises(ValueError, match=f"too large for {format}"):
        quantize(weight, format)


@pytest.mark.parametrize("format", ["fp32", "bf16", "int8", "int4"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_not_finite_is_refused(format, bad, dtype):
    weight = normal(70, 64, 1.0).to(dtype)
    weight[66, 5] = bad
    with pytest.raises(ValueError, match="NaN, infinite or too large"):
        quantize(weight, format, out=_out(weight, format))


def test_fp32_that_overflows_bf16_is_refused():
    weight = torch.full((2, 32), torch.finfo(torch.float32).max)
    with pytest.raises(ValueError, match="too large for bf16"):
        quantize(weight, "bf16")


@pytest.mark.parametrize("format", ["fp32", "bf16", "int8", "int4"])
@pytest.mark.parametrize("block", [1, 100, 1 << 17])
def test_blocks_change_nothing_and_nothing_between_rows_is_written(format, block, monkeypatch):
    weight = heavy_tailed(13, 96)
    expected = quantize(weight, format)
    monkeypatch.setattr(module, "_BLOCK_WEIGHTS", block)
    width = expected.data.shape[1]
    wide = torch.full((13, width + 6), 99, dtype=expected.data.dtype)
    found = quantize(weight, format, out=wide[:, 2 : width + 2])
    assert torch.equal(found.data, expected.data)
    assert found.data.data_ptr() == wide[:, 2:].data_ptr()
    assert bool((wide[:, :2] == 99).all())
    assert bool((wide[:, width + 2 :] == 99).all())


def test_weights_of_the_wanted_type_are_not_copied():
    for dtype, format in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        weight = normal(3, 40).to(dtype)
        assert quantize(weight, format).data.data_ptr() == weight.data_ptr()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("format", ["int8", "int4"])
def test_half_precision_is_rounded_as_its_values_are(dtype, format):
    weight = normal(5, 130).to(dtype)
    assert torch.equal(quantize(weight, format).data, quantize(weight.float(), format).data)


def test_what_is_no_matrix_is_refused():
    for bad in (torch.zeros(3), torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.int8)):
        with pytest.raises(ValueError, match="floating-point matrix"):
            quantize(bad, "int8")
    with pytest.raises(ValueError, match="format"):
        quantize(torch.zeros(2, 32), "int3")
    with pytest.raises(ValueError, match="out has 3 rows, the weight 2"):
        quantize(torch.zeros(2, 32), "bf16", out=torch.zeros(3, 32, dtype=torch.bfloat16))
    with pytest.raises(ValueError):
        quantize(torch.zeros(2, 32), "int8", out=torch.zeros(2, 32, dtype=torch.uint8))


def _out(weight: torch.Tensor, format: str) -> torch.Tensor:
    rows, columns = weight.shape
    if format in ("int8", "int4"):
        return torch.zeros(rows, row_bytes(format, columns), dtype=torch.uint8)
    return torch.zeros(rows, columns, dtype={"fp32": torch.float32}.get(format, torch.bfloat16))
