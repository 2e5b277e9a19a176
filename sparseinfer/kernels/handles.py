"""From `Matrix` to the compiled kernels' own handle."""

from __future__ import annotations

from sparseinfer.kernels.isa import native
from sparseinfer.kernels.matrix import FORMATS, Matrix


def native_matrix(matrix: Matrix):
    """The compiled handle on a matrix, whose memory it keeps alive.

    Raises:
        ValueError: a matrix that is not on the CPU, or fp16.
        ImportError: the native kernels are not built.
    """
    if matrix.device.type != "cpu":
        raise ValueError(f"weight must be on the CPU, not on {matrix.device}")
    if matrix.format not in FORMATS:
        raise ValueError(f"weight must be one of {', '.join(FORMATS)}, not {matrix.format}")
    return native().Matrix(matrix.data.detach(), FORMATS.index(matrix.format), matrix.columns)
