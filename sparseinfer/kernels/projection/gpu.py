"""The linear layer of either layout for decoding on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseinfer.kernels.input_mask import mask_inputs
from sparseinfer.kernels.linear import check_input
from sparseinfer.kernels.linear.gpu import GpuLinear
from sparseinfer.kernels.projection import Projection, ProjectionOutput
from sparseinfer.kernels.sparse_input_linear.gpu import GpuSparseInputLinear


class GpuProjection:
    """A handle on one linear layer; call it with x [B, K] fp32.

    Args:
        projection: on a GPU; kept alive, not copied. Changing `threshold` in place takes effect at
            the next call. Stored by output, all weights are read; stored by input, rows of inputs
            that do not count stay unread.

    Two calls give the same bits. Nothing waits for the GPU, so that calls can be captured in a
    CUDA graph.

    Raises:
        ValueError: weights that are not on a GPU.
        UnsupportedError: a GPU that is too old.
    """

    def __init__(self, projection: Projection) -> None:
        self.projection = projection
        weight, bias, threshold = projection.weight, projection.bias, projection.threshold
        self._op: GpuLinear | GpuSparseInputLinear
        if not projection.by_input:
            self._op = GpuLinear(weight, bias)
            return
        if threshold is None:
            threshold = torch.zeros(weight.rows, device=weight.device)
        self._op = GpuSparseInputLinear(weight, threshold, bias)

    def __call__(self, x: Tensor) -> ProjectionOutput:
        """y [B, N] fp32 and used [B] int64, or None without thresholds, for x [B, K] fp32,
        contiguous; any B.

        Raises:
            ValueError: `x` has the wrong shape, dtype, device or layout.
        """
        threshold = self.projection.threshold
        if isinstance(self._op, GpuSparseInputLinear):
            y, reads = self._op(x)
            return ProjectionOutput(y, None if threshold is None else reads)
        check_input(x, self.projection.weight)
        x, used = mask_inputs(x, threshold)
        return ProjectionOutput(self._op(x), used)
