"""A low-bit copy of a weight matrix, for estimates: 2, 3 or 4 bits in groups of 64.

A row holds all that belongs to it, the G = ceil(K / 64) scales (fp16) first:

    weight = scale * (code - 2^(bits - 1))
    scale = largest magnitude of the group / (2^(bits - 1) - 0.5)

* 4 bits: blocks of 64 bytes hold 128 weights: byte p has weight p in its low half and weight
  64 + p in its high half. A group that is left fills 32 bytes: weight p low, weight 32 + p high.
* 2 bits: blocks of 64 bytes hold 256 weights: byte p has weights p, 64 + p, 128 + p and 192 + p,
  from its low bits up. Each group left fills 16 bytes: weights p, 16 + p, 32 + p and 48 + p.
* 3 bits: the low two bits of all weights as above, then 8 bytes a group of top bits: bit p % 8 of
  byte p // 8 belongs to weight p.

The rest of the last group is padding of value 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparseinfer.kernels.matrix import Matrix

BITS = (2, 3, 4)
GROUP = 64

_BLOCK_WEIGHTS = 1 << 22
_LARGEST_FP16 = 65504.0


def groups_of(columns: int) -> int:
    """G."""
    return -(-columns // GROUP)


def row_bytes(bits: int, columns: int) -> int:
    """Bytes of one row of `columns` weights.

    Raises:
        ValueError: bits that are not in `BITS`.
    """
    if bits not in BITS:
        raise ValueError(f"a sketch has one of {', '.join(map(str, BITS))} bits, not {bits}")
    return groups_of(columns) * (2 + GROUP * bits // 8)


@dataclass(frozen=True)
class SketchMatrix:
    """N rows of K low-bit weights.

    Args:
        data: uint8 [N, row_bytes(bits, K)]; rows may lie apart.
        columns: K.
        bits: of a code.

    Raises:
        ValueError: data that does not fit.
    """

    data: Tensor
    columns: int
    bits: int

    def __post_init__(self) -> None:
        width = row_bytes(self.bits, self.columns)
        data = self.data
        if data.ndim != 2 or data.shape[1] != width or data.dtype != torch.uint8:
            raise ValueError(f"a sketch must be [N, {width}] uint8, not {list(data.shape)}")
        if data.stride(1) != 1 or (data.shape[0] > 1 and data.stride(0) < width):
            raise ValueError("the bytes of a sketch's row must lie side by side")

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.data.shape[0], self.columns

    @property
    def device(self) -> torch.device:
        return self.data.device

    @property
    def sketch_bits(self) -> int:
        return self.bits

    @property
    def sketch_row_bytes(self) -> int:
        """Bytes of one row, scales included."""
        return self.data.shape[1]

    def sketch_float(self, begin: int = 0, end: int | None = None) -> Tensor:
        """Rows begin..end-1 as fp32 [end - begin, K]; the exact values that the kernels use."""
        return self.int4(begin, end).float()

    def int4(self, begin: int = 0, end: int | None = None) -> Matrix:
        """Rows begin..end-1 as an int4 matrix of the same values, put together anew."""
        part = self.data[begin:end]
        groups = groups_of(self.columns)
        # A group of ours is two of int4's.
        scales = part[:, : 2 * groups].contiguous().view(torch.int16).repeat_interleave(2, 1)
        codes = part[:, 2 * groups :]
        if self.bits != 4:
            shifted = _unpack(codes, groups, self.bits) + (8 - 2 ** (self.bits - 1))
            codes = _pack_fields(shifted, 4)
        return Matrix("int4", torch.cat((scales.view(torch.uint8), codes), 1), self.columns)


def sketch_matrix(weight: Tensor, bits: int, out: Tensor | None = None) -> SketchMatrix:
    """Rounds a weight matrix [N, K] of any floating-point type to a sketch.

    Args:
        bits: one of `BITS`.
        out: uint8 [N, row_bytes(bits, K)] to put it; None allocates.

    Raises:
        ValueError: other bits, NaN or Inf, or values too large for fp16 scales.
    """
    rows, columns = weight.shape
    width = row_bytes(bits, columns)
    target = torch.empty(rows, width, dtype=torch.uint8) if out is None else out
    made = SketchMatrix(target, columns, bits)
    groups = groups_of(columns)
    step = max(1, _BLOCK_WEIGHTS // columns)
    for begin in range(0, rows, step):
        block = weight[begin : begin + step].float()
        padded = block.new_zeros(len(block), groups * GROUP)
        padded[:, :columns] = block
        grouped = padded.view(len(block), groups, GROUP)
        exact = grouped.abs().amax(2) / (2 ** (bits - 1) - 0.5)
        if not bool((exact <= _LARGEST_FP16).all()):  # false for NaN
            raise ValueError("a weight is NaN, infinite or too large for a sketch")
        scales = exact.half()
        inverse = torch.where(scales == 0, 0.0, 1 / scales.float())
        half = 2 ** (bits - 1)
        codes = (grouped * inverse[:, :, None]).round().clamp_(-half, half - 1).add_(half)
        part = target[begin : begin + step]
        part[:, : 2 * groups] = scales.view(torch.uint8)
        part[:, 2 * groups :] = _pack(codes.to(torch.uint8), bits)
    return made


def side_by_side(
    gate: Matrix, up: Matrix, bits: int, out: Tensor | None = None
) -> tuple[SketchMatrix, SketchMatrix]:
    """Sketches of gate and up [I, H], the two rows of a neuron side by side in memory.

    Args:
        out: uint8 [I, 2 row_bytes(bits, H)] to put them; None allocates.
    """
    rows, columns = gate.shape
    width = row_bytes(bits, columns)
    data = torch.empty(rows, 2 * width, dtype=torch.uint8) if out is None else out
    halves = data.split(width, 1)
    step = max(1, _BLOCK_WEIGHTS // columns)
    for begin in range(0, rows, step):
        for matrix, half in zip((gate, up), halves, strict=True):
            sketch_matrix(matrix.float(begin, begin + step), bits, half[begin : begin + step])
    return SketchMatrix(halves[0], columns, bits), SketchMatrix(halves[1], columns, bits)


def _pack(codes: Tensor, bits: int) -> Tensor:
    """Bytes [N, G * 8 * bits] of codes uint8 [N, G, 64]."""
    if bits == 3:
        return torch.cat((_pack_fields(codes & 3, 2), _pack_bits(codes >> 2)), 1)
    return _pack_fields(codes, bits)


def _unpack(data: Tensor, groups: int, bits: int) -> Tensor:
    """The reverse of `_pack`."""
    if bits == 3:
        low = 16 * groups
        return _unpack_fields(data[:, :low], groups, 2) | _unpack_bits(data[:, low:], groups) << 2
    return _unpack_fields(data, groups, bits)


def _pack_fields(codes: Tensor, bits: int) -> Tensor:
    """Bytes of codes [N, G, 64] whose fields of 2 or 4 bits belong to different groups of a block,
    or where no whole block is left, to different parts of one group."""
    rows, groups, _ = codes.shape
    fields = 8 // bits
    whole = groups // fields * fields
    blocks = codes[:, :whole].reshape(rows, -1, fields, GROUP)
    rest = codes[:, whole:].reshape(rows, -1, fields, GROUP // fields)
    return torch.cat((_joined(blocks, bits).flatten(1), _joined(rest, bits).flatten(1)), 1)


def _unpack_fields(data: Tensor, groups: int, bits: int) -> Tensor:
    fields = 8 // bits
    whole = groups // fields * fields
    split = whole // fields * GROUP
    blocks = _split(data[:, :split].reshape(len(data), -1, GROUP), bits)
    rest = _split(data[:, split:].reshape(len(data), -1, GROUP // fields), bits)
    parts = (blocks.reshape(len(data), -1, GROUP), rest.reshape(len(data), -1, GROUP))
    return torch.cat(parts, 1)


def _joined(fields: Tensor, bits: int) -> Tensor:
    """Bytes [..., P] of fields [..., 8 / bits, P], the first one lowest."""
    joined = torch.zeros_like(fields[..., 0, :])
    for index in range(fields.shape[-2]):
        joined |= fields[..., index, :] << (bits * index)
    return joined


def _split(data: Tensor, bits: int) -> Tensor:
    """Fields [..., 8 / bits, P] of bytes [..., P]."""
    mask = 2**bits - 1
    return torch.stack([data >> (bits * index) & mask for index in range(8 // bits)], -2)


def _pack_bits(tops: Tensor) -> Tensor:
    """Bytes [N, G * 8] of bits [N, G, 64]."""
    weights = 2 ** torch.arange(8, dtype=torch.uint8)
    return (tops.reshape(len(tops), -1, 8) * weights).sum(2, dtype=torch.uint8)


def _unpack_bits(data: Tensor, groups: int) -> Tensor:
    shifts = torch.arange(8, dtype=torch.uint8, device=data.device)
    return (data[:, :, None] >> shifts & 1).reshape(len(data), groups, GROUP)
