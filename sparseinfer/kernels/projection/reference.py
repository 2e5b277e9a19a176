"""The linear layer of either layout in plain torch."""

from __future__ import annotations

from torch import Tensor

from sparseinfer.kernels.gemm import Math
from sparseinfer.kernels.input_mask import mask_inputs
from sparseinfer.kernels.linear.reference import linear
from sparseinfer.kernels.products import times
from sparseinfer.kernels.projection import Projection, ProjectionOutput


def project(x: Tensor, projection: Projection, math: Math = "fp32") -> ProjectionOutput:
    """The function of `sparseinfer.kernels.projection`, dense.

    Args:
        x: [T, K] fp32, contiguous; any number of rows.
        projection: unpacked a block of rows at a time. Rows of inputs that do not count are
            multiplied by 0, so they must be finite.
        math: of the product.

    Raises:
        ValueError: `x` has the wrong shape, dtype, device or layout.
    """
    x, used = mask_inputs(x, projection.threshold)
    weight = projection.weight
    if not projection.by_input:
        return ProjectionOutput(linear(x, weight, projection.bias, math), used)
    if x.ndim != 2 or x.shape[1] != weight.rows:
        raise ValueError(f"x must be [T, {weight.rows}], not {list(x.shape)}")
    y = times(x, weight, math)
    if projection.bias is not None:
        y += projection.bias
    return ProjectionOutput(y, used)
