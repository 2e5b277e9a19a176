"""A weight matrix whose rows can be read one by one: fp32, bf16, fp16, or group-quantised.

A quantised row holds everything that belongs to it, so that a kernel which skips a row skips all
of its bytes:

    [ G scales, fp16 ][ codes ]     G = K / 32, rounded up to an even number

* int8: one signed byte per weight, in order; weight = scale * code.
* int4: two codes per byte, weight = scale * (code - 8). Blocks of 64 bytes hold 128 weights: byte p
  has weight p in its low half and weight 64 + p in its high half. What is left, at most 64 weights,
  fills 32 bytes in the same way: weight p low, weight 32 + p high.

The rest of the last groups is padding of value 0, or of scale 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Format = Literal["fp32", "bf16", "int8", "int4", "fp16"]
FORMATS: tuple[Format, ...] = ("fp32", "bf16", "int8", "int4")
"""What models are held in; the GPU kernels also take fp16."""

GROUP = 32
"""Weights along a row that share one scale."""

_DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int8": torch.uint8,
    "int4": torch.uint8,
}


def scales_per_row(columns: int) -> int:
    """Scales in a quantised row of `columns` weights: one per group, rounded up to even."""
    return -(-columns // (2 * GROUP)) * 2


def row_bytes(format: Format, columns: int) -> int:
    """Bytes of one row of `columns` weights.

    Raises:
        ValueError: an unknown format.
    """
    if format == "fp32":
        return 4 * columns
    if format in ("bf16", "fp16"):
        return 2 * columns
    groups = scales_per_row(columns)
    if format == "int8":
        return groups * (2 + GROUP)
    if format == "int4":
        return groups * (2 + GROUP // 2)
    raise ValueError(f"format must be one of {', '.join(FORMATS)}, not {format!r}")


@dataclass(frozen=True)
class Matrix:
    """N rows of K weights.

    Args:
        format: one of `FORMATS`, or fp16.
        data: fp32, bf16 or fp16 [N, K], or uint8 [N, row_bytes(format, K)]; on the CPU or a GPU.
            Elements of a row are adjacent; rows may lie apart (`data.stride(0)`), as in bundles of
            up and down.
        columns: K.

    Raises:
        ValueError: a dtype, shape or layout that does not fit the format.
    """

    format: Format
    data: Tensor
    columns: int

    def __post_init__(self) -> None:
        if self.format not in _DTYPES:
            raise ValueError(f"format must be one of {', '.join(_DTYPES)}, not {self.format!r}")
        data = self.data
        if data.ndim != 2 or 0 in data.shape:
            raise ValueError(f"a matrix must be [N, K] and not empty, not {list(data.shape)}")
        if data.dtype != _DTYPES[self.format]:
            raise ValueError(f"{self.format} rows are {_DTYPES[self.format]}, not {data.dtype}")
        width = row_bytes(self.format, self.columns) // data.element_size()
        if data.shape[1] != width:
            raise ValueError(
                f"{self.format} rows of {self.columns} weights have {width} elements, not "
                f"{data.shape[1]}"
            )
        if data.stride(1) != 1 or (data.shape[0] > 1 and data.stride(0) < width):
            raise ValueError("the elements of a row must be adjacent and rows must not overlap")

    @classmethod
    def of(cls, weight: Tensor) -> Matrix:
        """A view of a plain fp32, bf16 or fp16 weight [N, K].

        Raises:
            ValueError: another dtype, or rows that are not contiguous.
        """
        names: dict[torch.dtype, Format] = {
            torch.float32: "fp32",
            torch.bfloat16: "bf16",
            torch.float16: "fp16",
        }
        if weight.dtype not in names:
            raise ValueError(f"weight must be float32, bfloat16 or float16, not {weight.dtype}")
        if weight.ndim != 2:
            raise ValueError(f"a matrix must be [N, K] and not empty, not {list(weight.shape)}")
        return cls(names[weight.dtype], weight, weight.shape[1])

    @property
    def rows(self) -> int:
        """N."""
        return self.data.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.rows, self.columns

    @property
    def device(self) -> torch.device:
        return self.data.device

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, scales included."""
        return row_bytes(self.format, self.columns)

    @property
    def row_stride_bytes(self) -> int:
        """Bytes from the start of one row to the next."""
        if self.rows == 1:
            return self.row_bytes
        return self.data.stride(0) * self.data.element_size()

    def float(self, begin: int = 0, end: int | None = None) -> Tensor:
        """Rows begin..end-1 as fp32 [end - begin, K]; the exact values that the kernels use."""
        part = self.data[begin:end]
        if self.format in ("fp32", "bf16", "fp16"):
            return part.float()
        groups = scales_per_row(self.columns)
        scales = part[:, : 2 * groups].contiguous().view(torch.float16).float()
        codes = part[:, 2 * groups :]
        if self.format == "int8":
            weights = codes.contiguous().view(torch.int8).float()
        else:
            weights = unpack_int4(codes, groups * GROUP).float() - 8
        grouped = weights.view(-1, groups, GROUP) * scales[:, :, None]
        return grouped.view(-1, groups * GROUP)[:, : self.columns]


def unpack_int4(codes: Tensor, width: int) -> Tensor:
    """Codes [N, width] uint8 of packed bytes [N, width / 2]."""
    blocks = width // 128 * 64
    parts = []
    if blocks:
        whole = codes[:, :blocks].reshape(codes.shape[0], -1, 1, 64)
        parts.append(torch.cat((whole & 15, whole >> 4), 2).flatten(1))
    if codes.shape[1] > blocks:
        rest = codes[:, blocks:]
        parts.append(torch.cat((rest & 15, rest >> 4), 1))
    return torch.cat(parts, 1)


def pack_int4(codes: Tensor) -> Tensor:
    """Packed bytes [N, K / 2] of codes [N, K] uint8 in 0..15; K a multiple of 64."""
    blocks = codes.shape[1] // 128 * 128
    parts = []
    if blocks:
        whole = codes[:, :blocks].reshape(codes.shape[0], -1, 2, 64)
        parts.append((whole[:, :, 0] | whole[:, :, 1] << 4).flatten(1))
    if codes.shape[1] > blocks:
        parts.append(codes[:, blocks:-GROUP] | codes[:, -GROUP:] << 4)
    return torch.cat(parts, 1)
