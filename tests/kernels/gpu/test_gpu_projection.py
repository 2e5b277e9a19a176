"""Linear layers of either layout in Triton against the reference."""

from __future__ import annotations

import pytest
import torch
from gpu_cases import DEVICE, gpu_matrix, moved, normal, placed
from matrices import poison, relative

from sparseinfer.kernels.matrix import Matrix
from sparseinfer.kernels.projection import Projection
from sparseinfer.kernels.projection.gpu import GpuProjection
from sparseinfer.kernels.projection.reference import project

INPUTS, OUTPUTS = 70, 33


def threshold_of(x: torch.Tensor) -> torch.Tensor:
    """[K] between values, so that rounding decides nothing."""
    return x.abs().median() * (0.5 + torch.rand(INPUTS, generator=torch.Generator().manual_seed(2)))


@pytest.mark.parametrize("format", ["fp32", "bf16", "fp16", "int8", "int4"])
@pytest.mark.parametrize("by_input", [False, True])
@pytest.mark.parametrize("bounded", [False, True])
def test_all_four_cases(format, by_input, bounded):
    shape = (INPUTS, OUTPUTS) if by_input else (OUTPUTS, INPUTS)
    x = normal(18 if format == "bf16" else 2, INPUTS, seed=1)
    x[0, 3] = 0.0
    weight = moved(gpu_matrix(*shape, format), "cpu")
    threshold = threshold_of(x) if bounded else None
    one = Projection(weight, normal(OUTPUTS) if bounded else None, threshold, by_input)
    want = project(x, one)
    found = GpuProjection(placed(one))(x.to(DEVICE))
    assert relative(found.y.cpu(), want.y) < 1e-5
    if want.used is None:
        assert found.used is None
    else:
        assert found.used is not None
        assert torch.equal(found.used.cpu(), want.used)


def test_rows_of_inputs_that_do_not_count_are_not_read():
    x = normal(2, INPUTS)
    threshold = threshold_of(x)
    unread = ~(x.abs() >= threshold).any(0)
    assert unread.any()
    weight = moved(gpu_matrix(INPUTS, OUTPUTS, "bf16"), "cpu")
    clean, spoilt = (
        GpuProjection(placed(Projection(one, None, threshold, by_input=True)))(x.to(DEVICE))
        for one in (weight, poison(weight, unread))
    )
    assert torch.equal(clean.y, spoilt.y)


@pytest.mark.parametrize("by_input", [False, True])
def test_thresholds_may_change_in_place(by_input):
    threshold = torch.zeros(2)
    one = placed(Projection(Matrix.of(torch.eye(2)), None, threshold, by_input))
    op, x = GpuProjection(one), torch.tensor([[2.0, 3.0]], device=DEVICE)
    assert (op(x).y.tolist(), op(x).used.tolist()) == ([[2.0, 3.0]], [2])
    one.threshold.fill_(2.5)
    assert (op(x).y.tolist(), op(x).used.tolist()) == ([[0.0, 3.0]], [1])


@pytest.mark.parametrize("by_input", [False, True])
def test_wrong_input(by_input):
    op = GpuProjection(placed(Projection(Matrix.of(torch.ones(3, 3)), by_input=by_input)))
    for x in (torch.ones(2, 4), torch.ones(2, 3).double(), torch.ones(2, 6)[:, ::2]):
        with pytest.raises(ValueError, match="x must be"):
            op(x.to(DEVICE))
