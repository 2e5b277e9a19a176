"""The linear layer in plain torch: kernels are tested against it, and a GPU runs prompts by it."""

from __future__ import annotations

from torch import Tensor

from sparseinfer.kernels.gemm import Math
from sparseinfer.kernels.linear import check_bias, check_input
from sparseinfer.kernels.matrix import Matrix
from sparseinfer.kernels.products import times_transposed


def linear(x: Tensor, weight: Matrix, bias: Tensor | None = None, math: Math = "fp32") -> Tensor:
    """x @ weight.T + bias.

    Args:
        x: [B, K] fp32, contiguous; any number of rows.
        weight: [N, K]; unpacked a block of outputs at a time.
        bias: [N] fp32 or None.
        math: of the product.

    Returns:
        [B, N] fp32.

    Raises:
        ValueError: a shape, dtype, device or layout that does not fit.
    """
    check_bias(weight, bias)
    check_input(x, weight)
    y = times_transposed(x, weight, math)
    if bias is not None:
        y += bias
    return y
