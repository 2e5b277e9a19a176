"""The input-sparse linear layer in plain torch fp32."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseinfer.kernels.matrix import Matrix
from sparseinfer.kernels.sparse_input_linear import (
    SparseInputOutput,
    check_arguments,
    check_input,
)


def sparse_input_linear(
    x: Tensor, weight: Matrix, threshold: Tensor, bias: Tensor | None = None
) -> SparseInputOutput:
    """The function of `sparseinfer.kernels.sparse_input_linear`, dense.

    Args:
        x: [B, K] fp32, contiguous; any number of rows.
        weight: [K, N], by input.
        threshold: [K] fp32 on |x|; inf switches an input off.
        bias: [N] fp32 or None.

    Raises:
        ValueError: a shape, dtype, device or layout that does not fit, or a NaN threshold.
    """
    check_arguments(weight, threshold, bias)
    check_input(x, weight)
    # Said by what is dropped, so that NaN, which compares false, is kept.
    keep = ~((x.abs() < threshold) | (x == 0))
    y = torch.where(keep, x, 0.0) @ weight.float()
    if bias is not None:
        y = y + bias
    return SparseInputOutput(y, keep.sum(1))
