"""The linear layer of either layout for prompts: matrix products on oneDNN."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseinfer.kernels.gemm import Gemm, blocks
from sparseinfer.kernels.input_mask import mask_inputs
from sparseinfer.kernels.linear.prefill import linear
from sparseinfer.kernels.projection import Projection, ProjectionOutput


def project(x: Tensor, projection: Projection, gemm: Gemm) -> ProjectionOutput:
    """The function of `sparseinfer.kernels.projection`, dense.

    Args:
        x: [T, K] fp32, contiguous, on the CPU; any number of rows.
        projection: in any format; unpacked a block of rows at a time where `gemm` needs it. Rows of
            inputs that do not count are multiplied by 0, so they must be finite.
        gemm: the arithmetic, and memory to work in. Sums over blocks of inputs are fp32.

    Raises:
        ValueError: `x` has the wrong shape, dtype, device or layout.
    """
    x, used = mask_inputs(x, projection.threshold)
    weight = projection.weight
    if not projection.by_input:
        return ProjectionOutput(linear(x, weight, projection.bias, gemm), used)
    if x.ndim != 2 or x.shape[1] != weight.rows:
        raise ValueError(f"x must be [T, {weight.rows}], not {list(x.shape)}")
    y = torch.zeros(x.shape[0], weight.columns)
    for begin, end in blocks(weight.rows, weight.columns):
        operand = gemm.operand(x[:, begin:end].contiguous())
        y += gemm.times(operand, gemm.weights(weight, begin, end), "y")
    if projection.bias is not None:
        y += projection.bias
    return ProjectionOutput(y, used)
