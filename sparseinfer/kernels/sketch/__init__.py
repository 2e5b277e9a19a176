"""Candidates by a sketch: low-bit copies of gate and up estimate what each neuron would put out.

    g^ = x @ gate^.T + gate_bias    u^ = x @ up^.T + up_bias    estimate_i = |phi(g^_i) psi(u^_i)|
    candidate_i = not (estimate_i < threshold_i)

The estimate is the rule: whatever reaches its threshold is computed exactly, and nothing else is.
A NaN estimate counts as reaching it, so that bad input shows in the output.

* A side copy (`matrix.SketchMatrix`) is read besides fp32 or bf16 weights. It multiplies x rounded
  to 8 bits in groups of 64, here as in the native kernels.
* Where weights are held in planes (`planes.PlaneMatrix`), the high plane is the sketch.

`reference` is plain torch, `cpu` the native op, `gpu` the one in Triton; in a decode step on the
CPU it is part of `decoder`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparseinfer.kernels.matrix import Format
from sparseinfer.kernels.planes import PlaneMatrix
from sparseinfer.kernels.sketch.matrix import BITS, SketchMatrix


@dataclass(frozen=True)
class Sketch:
    """Low-bit copies of gate and up [I, H] of one layer.

    Args:
        gate, up: both side copies of as many bits, or both the planes that the layer computes with.

    Raises:
        ValueError: copies that do not fit each other.
    """

    gate: SketchMatrix | PlaneMatrix
    up: SketchMatrix | PlaneMatrix

    def __post_init__(self) -> None:
        if type(self.gate) is not type(self.up) or self.gate.shape != self.up.shape:
            raise ValueError("the sketches of gate and up are not of one kind and shape")
        if self.bits != self.up.sketch_bits:
            raise ValueError("the sketches of gate and up have different numbers of bits")

    @property
    def bits(self) -> int:
        """Of a weight."""
        return self.gate.sketch_bits

    @property
    def shape(self) -> tuple[int, int]:
        """(I, H)."""
        return self.gate.shape

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one estimate of all neurons reads."""
        return self.shape[0] * (self.gate.sketch_row_bytes + self.up.sketch_row_bytes)

    def rounded(self, x: Tensor) -> Tensor:
        """What x [B, H] fp32 is multiplied as."""
        return x if isinstance(self.gate, PlaneMatrix) else round_input(x)


def check_sketch(bits: int, format: Format) -> None:
    """Raises ValueError, with the reason, unless weights of a format can have a sketch of so many
    bits."""
    if not isinstance(bits, int) or bits not in BITS:
        raise ValueError(f"a sketch has one of {', '.join(map(str, BITS))} bits, not {bits!r}")
    if format == "int4":
        raise ValueError("a sketch reads as much as int4 weights do: it gains nothing there")
    if format == "int8" and bits != 4:
        raise ValueError(f"int8 weights are sketched by 4 of their own bits, not by {bits}")


GROUP = 64
"""Inputs that share one scale."""

_SMALLEST = 1e-30
"""Scales below this are 0."""


def round_input(x: Tensor) -> Tensor:
    """x [B, H] fp32 to 8 bits: groups of 64 are multiples of their largest magnitude / 127."""
    rows, columns = x.shape
    groups = -(-columns // GROUP)
    padded = x.new_zeros(rows, groups * GROUP)
    padded[:, :columns] = x
    grouped = padded.view(rows, groups, GROUP)
    scale = grouped.abs().amax(2, keepdim=True) / 127
    scale = torch.where(scale < _SMALLEST, 0.0, scale)  # false for NaN, which stays
    inverse = torch.where(scale == 0, 0.0, 1 / scale)
    return ((grouped * inverse).round() * scale).view(rows, -1)[:, :columns].contiguous()


__all__ = ["GROUP", "Sketch", "check_sketch", "round_input"]
