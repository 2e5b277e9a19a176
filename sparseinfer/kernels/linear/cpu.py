"""The linear layer for decoding on the CPU: few rows of x, every weight read once."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseinfer.kernels.handles import native_matrix
from sparseinfer.kernels.isa import choose_isa, native
from sparseinfer.kernels.linear import check_bias, check_input
from sparseinfer.kernels.matrix import Matrix
from sparseinfer.kernels.threads import CpuPool


class CpuLinear:
    """A handle on one weight matrix; call it with x [B, K] fp32.

    Args:
        weight: [N, K], on the CPU; kept alive, not copied.
        bias: [N] fp32 or None.
        pool: threads to run on.
        isa: kernel variant; None takes the fastest available one.

    The bits of a row's result depend on the weights, that row and the variant only.

    Raises:
        ValueError: a bias or device that does not fit, or an `isa` that cannot run here.
        ImportError: the native kernels are not built.
    """

    def __init__(
        self, weight: Matrix, bias: Tensor | None, pool: CpuPool, isa: str | None = None
    ) -> None:
        self.weight = weight
        self.bias = bias
        self.isa = choose_isa(isa)
        self._pool = pool.native
        self.native = native_linear(weight, bias)

    def __call__(self, x: Tensor) -> Tensor:
        """y [B, N] fp32 for x [B, K] fp32, contiguous.

        Raises:
            ValueError: `x` has the wrong shape, dtype, device or layout.
            RuntimeError: the pool belongs to the parent of a forked process.
        """
        check_input(x, self.weight)
        y = torch.empty((x.shape[0], self.weight.rows))
        self.native.call(self._pool, self.isa, x.data_ptr(), y.data_ptr(), x.shape[0])
        return y


def native_linear(weight: Matrix, bias: Tensor | None):
    """The compiled handle on a matrix and its bias, which it keeps alive.

    Raises:
        ValueError: a bias or device that does not fit.
        ImportError: the native kernels are not built.
    """
    check_bias(weight, bias)
    return native().Linear(native_matrix(weight), None if bias is None else bias.detach())
