"""The linear layer of either layout in plain torch fp32."""

from __future__ import annotations

from torch import Tensor

from sparseinfer.kernels.input_mask import mask_inputs
from sparseinfer.kernels.linear.reference import linear
from sparseinfer.kernels.projection import Projection, ProjectionOutput

# Bound of the fp32 copy of weights that exists at one time.
_COPY_BYTES = 64 << 20


def project(x: Tensor, projection: Projection) -> ProjectionOutput:
    """The function of `sparseinfer.kernels.projection`, dense.

    Args:
        x: [T, K] fp32, contiguous; any number of rows.
        projection: widened to fp32 a block of rows at a time. Rows of inputs that do not count are
            multiplied by 0, so they must be finite.

    Raises:
        ValueError: `x` has the wrong shape, dtype, device or layout.
    """
    x, used = mask_inputs(x, projection.threshold)
    weight = projection.weight
    if not projection.by_input:
        return ProjectionOutput(linear(x, weight, projection.bias), used)
    if x.ndim != 2 or x.shape[1] != weight.rows:
        raise ValueError(f"x must be [T, {weight.rows}], not {list(x.shape)}")
    block = max(1, _COPY_BYTES // (4 * weight.columns))
    y = x.new_zeros(x.shape[0], weight.columns)
    for begin in range(0, weight.rows, block):
        end = min(begin + block, weight.rows)
        y.addmm_(x[:, begin:end], weight.float(begin, end))
    if projection.bias is not None:
        y += projection.bias
    return ProjectionOutput(y, used)
