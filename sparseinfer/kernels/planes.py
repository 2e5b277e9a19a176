"""An int8 matrix in two planes: high and low halves of its codes, readable one without the other.

    weight = scale * code    code = 16 * high + low    high in -8..7, low in 0..15

    high row: [ G scales, fp16 ][ high + 8, two a byte ]    low row: [ low, two a byte ]

Scales, groups and padding are those of an int8 row of `matrix`, nibbles lie as in its int4 rows.
The high plane with 7.5 in place of every low half is a 4-bit sketch that takes no memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparseinfer.kernels.matrix import (
    GROUP,
    Format,
    Matrix,
    pack_int4,
    row_bytes,
    scales_per_row,
    unpack_int4,
)

MEAN_LOW = 7.5
"""What stands for a low half that is not read."""


def high_bytes(columns: int) -> int:
    """Bytes of a row of the high plane."""
    return row_bytes("int4", columns)


def low_bytes(columns: int) -> int:
    """Bytes of a row of the low plane."""
    return scales_per_row(columns) * GROUP // 2


def left_bytes(columns: int) -> int:
    """Bytes that a row reads when its high plane is read: the low plane, and the scales again."""
    return low_bytes(columns) + 2 * scales_per_row(columns)


@dataclass(frozen=True)
class PlaneMatrix:
    """N rows of K int8 weights.

    Args:
        high: uint8 [N, high_bytes(K)]; rows may lie apart.
        low: uint8 [N, low_bytes(K)]; rows may lie apart.
        columns: K.

    Raises:
        ValueError: planes that do not fit.
    """

    high: Tensor
    low: Tensor
    columns: int

    def __post_init__(self) -> None:
        widths = (("high", high_bytes(self.columns)), ("low", low_bytes(self.columns)))
        for name, width in widths:
            plane: Tensor = getattr(self, name)
            if plane.ndim != 2 or plane.shape[1] != width or plane.dtype != torch.uint8:
                raise ValueError(f"{name} must be [N, {width}] uint8, not {list(plane.shape)}")
            if plane.stride(1) != 1:
                raise ValueError(f"the bytes of a row of {name} must lie side by side")
        if len(self.high) != len(self.low):
            raise ValueError("the planes have different numbers of rows")

    @classmethod
    def of(
        cls, matrix: Matrix, high: Tensor | None = None, low: Tensor | None = None
    ) -> PlaneMatrix:
        """Splits an int8 matrix.

        Args:
            high, low: where to put the planes; None allocates.
        """
        rows, columns = matrix.shape
        high = torch.empty(rows, high_bytes(columns), dtype=torch.uint8) if high is None else high
        low = torch.empty(rows, low_bytes(columns), dtype=torch.uint8) if low is None else low
        fill_high(matrix, high)
        fill_low(matrix, low)
        return cls(high, low, columns)

    @property
    def format(self) -> Format:
        """What it computes as."""
        return "int8"

    @property
    def rows(self) -> int:
        """N."""
        return self.high.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.rows, self.columns

    @property
    def device(self) -> torch.device:
        return self.high.device

    @property
    def row_bytes(self) -> int:
        """Bytes of one row in both planes."""
        return self.high.shape[1] + self.low.shape[1]

    @property
    def sketch_bits(self) -> int:
        return 4

    @property
    def sketch_row_bytes(self) -> int:
        """Bytes of one row of the high plane."""
        return self.high.shape[1]

    def whole(self, begin: int = 0, end: int | None = None) -> Matrix:
        """Rows begin..end-1 as one int8 matrix, put together anew."""
        width = scales_per_row(self.columns) * GROUP
        scales = 2 * scales_per_row(self.columns)
        high, low = self.high[begin:end], self.low[begin:end]
        codes = unpack_int4(high[:, scales:], width) << 4 | unpack_int4(low, width)
        return Matrix("int8", torch.cat((high[:, :scales], codes ^ 128), 1), self.columns)

    def float(self, begin: int = 0, end: int | None = None) -> Tensor:
        """Rows begin..end-1 as fp32 [end - begin, K]; the exact values that the kernels use."""
        return self.whole(begin, end).float()

    def sketch_float(self, begin: int = 0, end: int | None = None) -> Tensor:
        """As `float`, of the high plane alone."""
        return self.from_high(self.high_matrix(begin, end).float(), begin)

    def high_matrix(self, begin: int = 0, end: int | None = None) -> Matrix:
        """A view of the high plane's rows begin..end-1: an int4 matrix of scale * high."""
        return Matrix("int4", self.high[begin:end], self.columns)

    def from_high(self, weights: Tensor, begin: int = 0) -> Tensor:
        """Turns `high_matrix` from row begin on, fp32 [N, K], into the sketch, in place and without
        rounding: no product has more bits than fp32."""
        groups = scales_per_row(self.columns)
        rows = self.high[begin : begin + len(weights), : 2 * groups]
        mean = rows.contiguous().view(torch.float16).float().mul_(MEAN_LOW)
        whole = self.columns // GROUP
        split = whole * GROUP
        sketch = weights.mul_(16)
        sketch[:, :split].unflatten(1, (whole, GROUP)).add_(mean[:, :whole, None])
        sketch[:, split:].add_(mean[:, whole : whole + 1])
        return sketch


def fill_high(matrix: Matrix, high: Tensor) -> None:
    """Writes the high plane of an int8 matrix to uint8 [N, high_bytes(K)]."""
    scales = 2 * scales_per_row(matrix.columns)
    high[:, :scales] = matrix.data[:, :scales]
    high[:, scales:] = pack_int4(_unsigned(matrix) >> 4)


def fill_low(matrix: Matrix, low: Tensor) -> None:
    """Writes the low plane of an int8 matrix to uint8 [N, low_bytes(K)]."""
    low.copy_(pack_int4(_unsigned(matrix) & 15))


def _unsigned(matrix: Matrix) -> Tensor:
    """Codes + 128 = 16 (high + 8) + low."""
    return matrix.data[:, 2 * scales_per_row(matrix.columns) :] ^ 128
