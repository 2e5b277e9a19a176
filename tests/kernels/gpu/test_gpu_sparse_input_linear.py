"""The input-sparse linear op in Triton: values, what it reads, and bad input."""

from __future__ import annotations

import pytest
import torch
from gpu_cases import DEVICE, gpu_matrix, moved, normal
from matrices import bundle, poison

from sparseinfer.kernels.matrix import Matrix
from sparseinfer.kernels.sparse_input_linear.gpu import GatherTile, GpuSparseInputLinear
from sparseinfer.kernels.sparse_input_linear.reference import sparse_input_linear

FORMATS = ("fp32", "bf16", "fp16", "int8", "int4")
SHAPES = [(1, 1, 2, 0), (17, 33, 1, 0.3), (64, 129, 3, 0.6), (150, 40, 2, 1)]


def thresholds(x: torch.Tensor, density: float) -> torch.Tensor:
    """[K] that keep about that part of the inputs."""
    if density in (0, 1):
        return torch.full((x.shape[1],), torch.inf if density == 0 else 0.0)
    middle = float(x.abs().quantile(1 - density))
    return middle * (0.5 + torch.rand(x.shape[1], generator=torch.Generator().manual_seed(0)))


def check(x, weight, threshold, bias=None, tile=None) -> None:
    on_gpu = None if bias is None else bias.to(DEVICE)
    op = GpuSparseInputLinear(weight, threshold.to(DEVICE), on_gpu, tile)
    y, reads = op(x.to(DEVICE))
    want = sparse_input_linear(x, moved(weight, "cpu"), threshold, bias)
    assert torch.equal(reads.cpu(), want.reads)
    torch.testing.assert_close(y.cpu(), want.y, atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("inputs", "outputs", "rows", "density"), SHAPES)
def test_values_and_reads(format, inputs, outputs, rows, density):
    weight = gpu_matrix(inputs, outputs, format, seed=outputs)
    x = normal(rows, inputs, seed=inputs)
    bias = normal(outputs, seed=1) if rows == 2 else None
    check(x, weight, thresholds(x, density), bias)


@pytest.mark.parametrize("tile", [GatherTile(4, 64, 1, 1), GatherTile(16, 256, 2, 5)])
def test_every_tile_computes_the_same(tile):
    x, weight = normal(2, 50), gpu_matrix(50, 70, "bf16")
    check(x, weight, thresholds(x, 0.4), tile=tile)


def test_more_rows_than_one_pass_takes():
    x, weight = normal(18, 20), gpu_matrix(20, 36, "int8")
    check(x, weight, thresholds(x, 0.4), normal(36))


@pytest.mark.parametrize("format", ["bf16", "int8", "int4"])
def test_rows_of_dropped_inputs_are_not_read(format):
    x, weight = normal(2, 50), gpu_matrix(50, 40, format)
    threshold = thresholds(x, 0.3)
    unread = ~((x.abs() >= threshold) & (x != 0)).any(0)
    assert unread.any()
    bad = bundle(poison(weight, unread.to(DEVICE)), weight)[0]
    clean = GpuSparseInputLinear(weight, threshold.to(DEVICE), None)(x.to(DEVICE))
    found = GpuSparseInputLinear(bad, threshold.to(DEVICE), None)(x.to(DEVICE))
    assert torch.equal(found.y, clean.y)
    assert torch.equal(found.reads, clean.reads)


def test_the_threshold_is_inclusive_and_nan_passes_it():
    weight = Matrix.of(torch.ones(4, 1, device=DEVICE))
    x = torch.tensor([[1.0, -1.0, 0.0, 2.0]], device=DEVICE)
    threshold = torch.tensor([1.0, 1.0001, 0.0, 0.5], device=DEVICE)
    op = GpuSparseInputLinear(weight, threshold, None)
    assert (op(x).y.item(), op(x).reads.item()) == (3.0, 2)
    threshold.fill_(torch.inf)
    assert op(x).reads.tolist() == [0]
    assert op(x).y.tolist() == [[0.0]]
    x[0, 0] = torch.nan
    assert op(x).reads.tolist() == [1]
    assert torch.isnan(op(x).y).all()


def test_no_rows():
    op = GpuSparseInputLinear(gpu_matrix(4, 3, "int8"), torch.ones(4, device=DEVICE), None)
    y, reads = op(torch.ones(0, 4, device=DEVICE))
    assert (y.shape, reads.shape) == ((0, 3), (0,))
