"""The linear layer in plain torch fp32."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseinfer.kernels.linear import check_input, check_weight

# Bound of the fp32 copy of bf16 weights that exists at one time.
_COPY_BYTES = 64 << 20


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias in fp32.

    Args:
        x: [B, K] fp32, contiguous; any number of rows.
        weight: [N, K] fp32 or bf16, contiguous; bf16 is widened a block of outputs at a time.
        bias: [N] fp32 or None.

    Returns:
        [B, N] fp32.

    Raises:
        ValueError: a shape, dtype, device or layout that does not fit.
    """
    check_weight(weight, bias)
    check_input(x, weight)
    if weight.dtype == torch.float32:
        return torch.nn.functional.linear(x, weight, bias)
    outputs, inputs = weight.shape
    block = max(1, _COPY_BYTES // (4 * inputs))
    y = x.new_empty(x.shape[0], outputs)
    for begin in range(0, outputs, block):
        part = slice(begin, begin + block)
        y[:, part] = x @ weight[part].float().T
    if bias is not None:
        y += bias
    return y
