"""Matrix products of many rows in plain torch, on whatever device the weights are.

Arithmetic is one of `gemm.MATHS`: fp32, or operands and results rounded to bf16 with sums in fp32.
On the CPU `gemm` is many times faster; on a GPU these run on torch's own libraries.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from sparseinfer.kernels.gemm import Math
from sparseinfer.kernels.matrix import Matrix

# Bound of the unpacked copy of weights that exists at one time.
_COPY_BYTES = 64 << 20


def times_transposed(x: Tensor, weight: Matrix, math: Math = "fp32") -> Tensor:
    """x [T, K] @ weight [N, K].T, fp32 [T, N]; weights are unpacked a block of rows at a time."""
    y = x.new_empty(x.shape[0], weight.rows)
    rounded = operand(x, math)
    for begin, end in _blocks(weight, math):
        y[:, begin:end] = rounded @ _weights(weight, begin, end, math).T
    return y


def times(x: Tensor, weight: Matrix, math: Math = "fp32") -> Tensor:
    """x [T, N] @ weight [N, K], fp32 [T, K]; sums over blocks of rows are fp32."""
    y = x.new_zeros(x.shape[0], weight.columns)
    rounded = operand(x, math)
    for begin, end in _blocks(weight, math):
        part = rounded[:, begin:end]
        rows = _weights(weight, begin, end, math)
        if math == "fp32":
            y.addmm_(part, rows)
        else:
            y += part @ rows
    return y


def operand(x: Tensor, math: Math) -> Tensor:
    """x as the products take it."""
    return x if math == "fp32" else x.bfloat16()


def _weights(weight: Matrix, begin: int, end: int, math: Math) -> Tensor:
    if math == "fp32":
        return weight.float(begin, end)
    if weight.format == "bf16":
        return weight.data[begin:end]
    return weight.float(begin, end).bfloat16()


def _blocks(weight: Matrix, math: Math) -> Iterator[tuple[int, int]]:
    """(begin, end) of the ranges of rows that are multiplied at a time."""
    stored = weight.format == math
    size = weight.rows if stored else max(1, _COPY_BYTES // (4 * weight.columns))
    for begin in range(0, weight.rows, size):
        yield begin, min(begin + size, weight.rows)


__all__ = ["operand", "times", "times_transposed"]
