"""Linear layers in either layout, with and without thresholds, for many rows at once."""

from __future__ import annotations

import pytest
import torch
from matrices import matrix, relative
from torch import Tensor

from sparseinfer.kernels.gemm import MATHS, Gemm, has_bf16
from sparseinfer.kernels.input_mask import mask_inputs
from sparseinfer.kernels.matrix import Matrix
from sparseinfer.kernels.projection import Projection
from sparseinfer.kernels.projection.prefill import project as prefill
from sparseinfer.kernels.projection.reference import project as reference

NEAR = {"fp32": 1e-5, "bf16": 2e-2}


@pytest.fixture(params=["reference", *MATHS])
def project(request, pool):
    """project(x, projection), and how near it comes."""
    if request.param == "reference":
        return reference, NEAR["fp32"]
    if request.param == "bf16" and not has_bf16():
        pytest.skip("no bf16 instructions")
    gemm = Gemm(request.param, pool)
    return (lambda x, one: prefill(x, one, gemm)), NEAR[request.param]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_which_inputs_count():
    x = torch.tensor([[0.0, 1.0, -2.0, torch.nan, 0.5, torch.inf]])
    threshold = torch.tensor([0.0, 1.0, 2.5, 9.0, 0.0, torch.inf])
    masked, used = mask_inputs(x, threshold)
    expected = torch.tensor([[0.0, 1.0, 0.0, torch.nan, 0.5, torch.inf]])
    torch.testing.assert_close(masked, expected, equal_nan=True)
    assert used.tolist() == [4]
    same, none = mask_inputs(x, None)
    assert same is x
    assert none is None


def test_by_hand(project):
    weight = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    x = torch.tensor([[1.0, -0.5, 2.0], [0.0, 3.0, 0.25]])
    threshold, bias = torch.tensor([0.5, 1.0, 1.0]), torch.tensor([0.5, -1.0])
    for data, by_input in ((weight, False), (weight.T.contiguous(), True)):
        one = Projection(Matrix.of(data), bias, threshold, by_input)
        assert (one.inputs, one.outputs) == (3, 2)
        y, used = project[0](x, one)
        # Row 0 has x0 and x2 left, row 1 x1.
        assert y.tolist() == [[7.5, 15.0], [6.5, 14.0]]
        assert used.tolist() == [2, 1]


@pytest.mark.parametrize("by_input", [False, True])
@pytest.mark.parametrize("shape", [(70, 33), (96, 200), (5, 1)])
def test_against_fp64(project, format, shape, by_input):
    inputs, outputs = shape
    weight = matrix(*(shape if by_input else shape[::-1]), format, seed=1)
    x, threshold = normal(9, inputs), normal(inputs, seed=2).abs()
    bias = normal(outputs, seed=3)
    keep = x.abs() >= threshold
    wide = weight.float().double()
    expected = torch.where(keep, x, 0.0).double() @ (wide if by_input else wide.T) + bias
    y, used = project[0](x, Projection(weight, bias, threshold, by_input))
    assert relative(y, expected) < project[1]
    assert torch.equal(used, keep.sum(1))
    y, used = project[0](x, Projection(weight, bias, None, by_input))
    assert relative(y, x.double() @ (wide if by_input else wide.T) + bias) < project[1]
    assert used is None


@pytest.mark.parametrize("by_input", [False, True])
def test_matrices_of_many_blocks(project, by_input):
    """Prompts work through large matrices in several blocks of rows."""
    shape = (1500, 8200)
    weight = matrix(*(shape if by_input else shape[::-1]), "int8")
    x = normal(3, shape[0])
    wide = weight.float().double()
    y, _ = project[0](x, Projection(weight, by_input=by_input))
    assert relative(y, x.double() @ (wide if by_input else wide.T)) < project[1]


@pytest.mark.parametrize(
    ("bias", "threshold", "message"),
    [
        (torch.zeros(3), None, r"bias must be \[4\]"),
        (None, torch.zeros(4), r"threshold must be \[3\]"),
        (None, torch.zeros(3).double(), "fp32"),
        (None, torch.zeros(6)[::2], "contiguous"),
        (None, torch.full((3,), torch.nan), "threshold has NaN"),
    ],
)
def test_what_does_not_fit(bias, threshold, message):
    for data, by_input in ((torch.zeros(4, 3), False), (torch.zeros(3, 4), True)):
        with pytest.raises(ValueError, match=message):
            Projection(Matrix.of(data), bias, threshold, by_input)


def test_inputs_of_another_size(project):
    for data, by_input in ((torch.zeros(4, 3), False), (torch.zeros(3, 4), True)):
        with pytest.raises(ValueError, match=r"x must be"):
            project[0](torch.zeros(2, 4), Projection(Matrix.of(data), by_input=by_input))
