"""The input-sparse linear layer for decoding on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseinfer.kernels.handles import native_matrix
from sparseinfer.kernels.isa import choose_isa, native
from sparseinfer.kernels.matrix import Matrix
from sparseinfer.kernels.sparse_input_linear import (
    SparseInputOutput,
    check_arguments,
    check_input,
)
from sparseinfer.kernels.threads import CpuPool


class CpuSparseInputLinear:
    """A handle on one weight matrix stored by input; call it with x [B, K] fp32.

    Args:
        weight: [K, N], on the CPU; kept alive, not copied.
        threshold: [K] fp32 on |x|; inf switches an input off.
        bias: [N] fp32 or None.
        pool: threads to run on.
        isa: kernel variant; None takes the fastest available one.

    The bits of a row's result depend on the weights, that row and the variant only.

    Raises:
        ValueError: a shape, dtype or device that does not fit, a NaN threshold, or an `isa` that
            cannot run here.
        ImportError: the native kernels are not built.
    """

    def __init__(
        self,
        weight: Matrix,
        threshold: Tensor,
        bias: Tensor | None,
        pool: CpuPool,
        isa: str | None = None,
    ) -> None:
        check_arguments(weight, threshold, bias)
        self.weight = weight
        self.isa = choose_isa(isa)
        self._pool = pool.native
        self._native = native().SparseInputLinear(
            native_matrix(weight), threshold.detach(), None if bias is None else bias.detach()
        )

    def __call__(self, x: Tensor) -> SparseInputOutput:
        """y [B, N] fp32 and reads [B] int64 for x [B, K] fp32, contiguous.

        Raises:
            ValueError: `x` has the wrong shape, dtype, device or layout.
            RuntimeError: the pool belongs to the parent of a forked process.
        """
        check_input(x, self.weight)
        y = torch.empty((x.shape[0], self.weight.columns))
        reads = torch.empty(x.shape[0], dtype=torch.int64)
        self._native.call(
            self._pool, self.isa, x.data_ptr(), y.data_ptr(), reads.data_ptr(), x.shape[0]
        )
        return SparseInputOutput(y, reads)
