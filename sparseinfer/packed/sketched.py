"""One layer's FFN with a sketch made of its weights, laid out in memory as a pack lays it out."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from sparseinfer.kernels.gated_ffn import FfnWeights
from sparseinfer.kernels.matrix import Matrix
from sparseinfer.kernels.planes import PlaneMatrix, high_bytes, low_bytes
from sparseinfer.kernels.sketch import Sketch
from sparseinfer.kernels.sketch.matrix import row_bytes, side_by_side
from sparseinfer.packed.layout import row_stride
from sparseinfer.packed.memory import anonymous


def with_side_copy(ffn: FfnWeights, gate: Matrix, up: Matrix, bits: int) -> FfnWeights:
    """fp32 or bf16 weights with low-bit copies of gate and up [I, H], side by side in a row."""
    width = row_bytes(bits, gate.columns)
    return replace(
        ffn, sketch=Sketch(*side_by_side(gate, up, bits, out=_rows(gate.rows, 2 * width)))
    )


def in_planes(ffn: FfnWeights, gate: Matrix, up: Matrix) -> FfnWeights:
    """int8 weights in planes: rows of high halves, and rows of low halves with down's behind."""
    columns = gate.columns
    high_row, low_row = high_bytes(columns), low_bytes(columns)
    high = _rows(gate.rows, 2 * high_row)
    low = _rows(gate.rows, 2 * low_row + ffn.down.row_bytes)
    gates = PlaneMatrix.of(gate, high[:, :high_row], low[:, :low_row])
    ups = PlaneMatrix.of(up, high[:, high_row:], low[:, low_row : 2 * low_row])
    down = low[:, 2 * low_row :].copy_(ffn.down.data)
    return replace(
        ffn,
        gate=gates,
        up=ups,
        down=Matrix("int8", down, ffn.down.columns),
        sketch=Sketch(gates, ups),
    )


def _rows(count: int, width: int) -> Tensor:
    """uint8 [count, width] in huge pages."""
    stride = row_stride(width)
    return anonymous(count * stride).view(count, stride)[:, :width]
