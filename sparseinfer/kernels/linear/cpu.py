"""The linear layer for decoding on the CPU: few rows of x, every weight read once."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseinfer.kernels.isa import choose_isa, native
from sparseinfer.kernels.linear import check_input, check_weight
from sparseinfer.kernels.threads import CpuPool


class CpuLinear:
    """A handle on one weight matrix; call it with x [B, K] fp32.

    Args:
        weight: [N, K] fp32 or bf16, contiguous, on the CPU; kept alive, not copied.
        bias: [N] fp32 or None.
        pool: threads to run on.
        isa: kernel variant; None takes the fastest available one.

    The bits of a row's result depend on the weights, that row and the variant only.

    Raises:
        ValueError: a shape, dtype, device or layout that does not fit, or an `isa` that cannot run
            here.
        ImportError: the native kernels are not built.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, pool: CpuPool, isa: str | None = None
    ) -> None:
        check_weight(weight, bias)
        if weight.device.type != "cpu":
            raise ValueError(f"weight must be on the CPU, not on {weight.device}")
        self.weight = weight
        self.bias = bias
        self.isa = choose_isa(isa)
        self._outputs = weight.shape[0]
        self._native = native().Linear(
            weight.detach(), None if bias is None else bias.detach(), pool.native, self.isa
        )

    def __call__(self, x: Tensor) -> Tensor:
        """y [B, N] fp32 for x [B, K] fp32, contiguous.

        Raises:
            ValueError: `x` has the wrong shape, dtype, device or layout.
            RuntimeError: the pool belongs to the parent of a forked process.
        """
        check_input(x, self.weight)
        y = torch.empty((x.shape[0], self._outputs))
        self._native.call(x.data_ptr(), y.data_ptr(), x.shape[0])
        return y
