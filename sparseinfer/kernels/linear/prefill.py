"""The linear layer for prompts: matrix products on oneDNN."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseinfer.kernels.gemm import Gemm, blocks
from sparseinfer.kernels.linear import check_bias, check_input
from sparseinfer.kernels.matrix import Matrix


def linear(x: Tensor, weight: Matrix, bias: Tensor | None, gemm: Gemm) -> Tensor:
    """x @ weight.T + bias.

    Args:
        x: [T, K] fp32, contiguous, on the CPU; any number of rows.
        weight: [N, K] in any format; unpacked a block of outputs at a time where `gemm` needs it.
        bias: [N] fp32 or None.
        gemm: the arithmetic, and memory to work in.

    Returns:
        [T, N] fp32.

    Raises:
        ValueError: a shape, dtype, device or layout that does not fit.
    """
    check_bias(weight, bias)
    check_input(x, weight)
    operand = gemm.operand(x)
    y = torch.empty(x.shape[0], weight.rows)
    for begin, end in blocks(weight.rows, weight.columns):
        y[:, begin:end] = gemm.times_transposed(operand, gemm.weights(weight, begin, end), "y")
    if bias is not None:
        y += bias
    return y
