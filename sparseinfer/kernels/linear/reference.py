"""The linear layer in plain torch fp32."""

from __future__ import annotations

from torch import Tensor

from sparseinfer.kernels.linear import check_bias, check_input
from sparseinfer.kernels.matrix import Matrix

# Bound of the fp32 copy of weights that exists at one time.
_COPY_BYTES = 64 << 20


def linear(x: Tensor, weight: Matrix, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias in fp32.

    Args:
        x: [B, K] fp32, contiguous; any number of rows.
        weight: [N, K]; widened to fp32 a block of outputs at a time.
        bias: [N] fp32 or None.

    Returns:
        [B, N] fp32.

    Raises:
        ValueError: a shape, dtype, device or layout that does not fit.
    """
    check_bias(weight, bias)
    check_input(x, weight)
    block = max(1, _COPY_BYTES // (4 * weight.columns))
    y = x.new_empty(x.shape[0], weight.rows)
    for begin in range(0, weight.rows, block):
        end = min(begin + block, weight.rows)
        y[:, begin:end] = x @ weight.float(begin, end).T
    if bias is not None:
        y += bias
    return y
