"""The gated feed-forward layer that computes only the neurons its threshold lets through.

    g = x @ gate.T + gate_bias    a = phi(g)           keep_i = |a_i| >= threshold_i and a_i != 0
    u = x @ up.T + up_bias        h_i = a_i * psi(u_i) if keep_i else 0
    y = h @ down + down_bias

A NaN activation counts as kept, so that bad input shows in the output. Weights may also have

* a predictor (`lowrank`, `sign`): only its candidates are considered, others are dropped unread;
* a sketch (`sketch`): it decides alone, and the threshold is on its estimates in place of |a|.
  What it drops is unread too;
* top_k: of the neurons that reach their threshold, only the k of largest |a| are kept;
* thresholds on inputs (`input_mask`): gate and up see 0 where x misses theirs, down where h does.

`reference` is plain torch, `prefill` serves many rows at once, `cpu` and `gpu_rules.gpu_ffn` read
the rows of up and down of kept neurons only (decode).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sparseinfer.kernels.gated_ffn.activations import PHI, PSI
from sparseinfer.kernels.input_mask import check_threshold
from sparseinfer.kernels.lowrank import LowRank
from sparseinfer.kernels.matrix import Matrix
from sparseinfer.kernels.planes import PlaneMatrix, left_bytes
from sparseinfer.kernels.projection import Projection
from sparseinfer.kernels.sign import SignBits
from sparseinfer.kernels.sketch import Sketch


class FfnOutput(NamedTuple):
    """What one call returns."""

    y: Tensor
    """[B, H] fp32."""
    counts: Tensor
    """[B, 2] int64: rows of up read (neurons kept), rows of down read (of those, h != 0)."""
    inputs: Tensor | None = None
    """[B, 3] int64: inputs of gate, up and down that count, 0 for those without thresholds; None
    where none of them has any."""
    gates: Tensor | None = None
    """[B] int64: rows of gate read; None where all are."""


@dataclass(frozen=True)
class FfnWeights:
    """Weights of one layer, neuron-major: row i of each matrix belongs to neuron i.

    Args:
        gate, up: [I, H], of one format, on one device; [H, I] where stored by input. Both may be in
            planes, and are then sketched by them.
        down: [I, H], same format: the transpose of a Hugging Face `down_proj.weight`.
        threshold: [I] fp32, on |phi(g)|, or with a sketch on its estimates; inf switches a neuron
            off.
        phi: one of `PHI`; relu2 is relu(g) squared.
        psi: one of `PSI`; id leaves u as it is.
        gate_bias, up_bias: [I] fp32 or None.
        down_bias: [H] fp32 or None.
        gate_input, up_input: [H] fp32, thresholds on |x|, or None.
        down_input: [I] fp32, threshold on |h|, or None.
        gate_by_input, up_by_input: whether they are stored by input.
        top_k: most neurons that a row of x keeps; None: all that reach their threshold.
        predictor: lets neurons through; None: all of them.
        sketch: decides which neurons are computed; None: their gates do.

    Raises:
        ValueError: a shape, format, device, layout or name that does not fit, a NaN threshold, a
            top_k outside [1, I], or rules that exclude each other.
    """

    gate: Matrix | PlaneMatrix
    up: Matrix | PlaneMatrix
    down: Matrix
    threshold: Tensor
    phi: str
    psi: str
    gate_bias: Tensor | None = None
    up_bias: Tensor | None = None
    down_bias: Tensor | None = None
    gate_input: Tensor | None = None
    up_input: Tensor | None = None
    down_input: Tensor | None = None
    gate_by_input: bool = False
    up_by_input: bool = False
    top_k: int | None = None
    predictor: LowRank | SignBits | None = None
    sketch: Sketch | None = None

    def __post_init__(self) -> None:
        if self.phi not in PHI:
            raise ValueError(f"phi must be one of {', '.join(PHI)}, not {self.phi!r}")
        if self.psi not in PSI:
            raise ValueError(f"psi must be one of {', '.join(PSI)}, not {self.psi!r}")
        neuron_major = (self.intermediate, self.hidden)
        for name, by_input in (("up", self.up_by_input), ("down", False)):
            other: Matrix | PlaneMatrix = getattr(self, name)
            shape = neuron_major[::-1] if by_input else neuron_major
            if other.shape != shape:
                raise ValueError(f"{name} must be {list(shape)}, not {list(other.shape)}")
            if other.format != self.gate.format:
                raise ValueError(f"{name} is {other.format}, but gate is {self.gate.format}")
            if other.device != self.gate.device:
                raise ValueError(f"{name} is on {other.device}, but gate on {self.gate.device}")
        intermediate, hidden = neuron_major
        self._check("threshold", intermediate)
        self._check("gate_bias", intermediate)
        self._check("up_bias", intermediate)
        self._check("down_bias", hidden)
        if bool(torch.isnan(self.threshold).any()):
            raise ValueError("threshold has NaN")
        device = self.gate.device
        check_threshold("gate_input", self.gate_input, hidden, device)
        check_threshold("up_input", self.up_input, hidden, device)
        check_threshold("down_input", self.down_input, intermediate, device)
        if self.top_k is not None and not 1 <= self.top_k <= intermediate:
            raise ValueError(f"top_k must be from 1 to {intermediate}, not {self.top_k}")
        self._check_candidates()

    def _check_candidates(self) -> None:
        """Whether what chooses candidates fits, and goes with the other rules."""
        planes = [isinstance(one, PlaneMatrix) for one in (self.gate, self.up)]
        if planes[0] != planes[1]:
            raise ValueError("gate and up must both be in planes, or neither")
        if planes[0] and (self.sketch is None or self.sketch.gate is not self.gate):
            raise ValueError("weights in planes are sketched by them")
        if self.predictor is None and self.sketch is None:
            return
        if self.predictor is not None and self.sketch is not None:
            raise ValueError("a sketch decides alone: it goes with no predictor")
        thresholds = (self.gate_input, self.up_input, self.down_input)
        if self.needs_all_gates or any(one is not None for one in thresholds):
            raise ValueError(
                "candidates do not go with top_k, nor with thresholds on inputs of the FFN"
            )
        shape = (self.intermediate, self.hidden)
        found = shape
        if self.sketch is not None:
            found = self.sketch.shape
        elif self.predictor is not None:
            found = (self.predictor.intermediate, self.predictor.hidden)
        if found != shape:
            raise ValueError(f"the predictor is for [I, H] = {list(found)}, not {list(shape)}")

    def _check(self, name: str, size: int) -> None:
        tensor: Tensor | None = getattr(self, name)
        if tensor is None:
            if name.endswith("_bias"):
                return
            raise ValueError(f"{name} is missing")
        if tuple(tensor.shape) != (size,):
            raise ValueError(f"{name} must be {[size]}, not {list(tensor.shape)}")
        if tensor.dtype != torch.float32:
            raise ValueError(f"{name} must be torch.float32, not {tensor.dtype}")
        if tensor.device != self.gate.device:
            raise ValueError(f"{name} is on {tensor.device}, but gate on {self.gate.device}")
        if not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous")

    @property
    def hidden(self) -> int:
        """H."""
        return self.gate.shape[0 if self.gate_by_input else 1]

    @property
    def intermediate(self) -> int:
        """I."""
        return self.gate.shape[1 if self.gate_by_input else 0]

    @property
    def needs_all_gates(self) -> bool:
        """Whether no neuron can go on before all gate values are there."""
        return self.top_k is not None or self.gate_by_input or self.up_by_input

    @property
    def chooses_candidates(self) -> bool:
        """Whether rows of the gate may stay unread."""
        return self.predictor is not None or self.sketch is not None

    @property
    def predictor_bytes(self) -> int:
        """Bytes that a token reads before it reads any neuron."""
        chooser = self.sketch or self.predictor
        return 0 if chooser is None else chooser.bytes_per_token

    @property
    def neuron_bytes(self) -> tuple[int, int, int]:
        """Bytes that a neuron which is computed reads of gate, up and down, besides."""
        return _bytes_left(self.gate), _bytes_left(self.up), self.down.row_bytes

    @property
    def gate_projection(self) -> Projection:
        return Projection(_whole(self.gate), self.gate_bias, self.gate_input, self.gate_by_input)

    @property
    def up_projection(self) -> Projection:
        return Projection(_whole(self.up), self.up_bias, self.up_input, self.up_by_input)

    @property
    def down_projection(self) -> Projection:
        """Down is stored by its inputs, the neurons."""
        return Projection(self.down, self.down_bias, self.down_input, by_input=True)


def _whole(matrix: Matrix | PlaneMatrix) -> Matrix:
    return matrix.whole() if isinstance(matrix, PlaneMatrix) else matrix


def _bytes_left(matrix: Matrix | PlaneMatrix) -> int:
    """Of a row, when the sketch is read."""
    return left_bytes(matrix.columns) if isinstance(matrix, PlaneMatrix) else matrix.row_bytes


def check_candidates(candidates: Tensor | None, x: Tensor, weights: FfnWeights) -> None:
    """Raises ValueError unless `candidates` is None, or bool [B, I] and the weights have nothing
    else that chooses some."""
    if candidates is None:
        return
    shape = (x.shape[0], weights.intermediate)
    if tuple(candidates.shape) != shape or candidates.dtype != torch.bool:
        raise ValueError(f"candidates must be {list(shape)} bool, not {list(candidates.shape)}")
    if weights.chooses_candidates or weights.needs_all_gates:
        raise ValueError("these weights do not take candidates")


def check_input(x: Tensor, weights: FfnWeights) -> None:
    """Raises ValueError unless `x` is [B, H] fp32, contiguous and on the device of the weights."""
    if x.ndim != 2 or x.shape[1] != weights.hidden:
        raise ValueError(f"x must be [B, {weights.hidden}], not {list(x.shape)}")
    if x.dtype != torch.float32:
        raise ValueError(f"x must be torch.float32, not {x.dtype}")
    if x.device != weights.gate.device:
        raise ValueError(f"x is on {x.device}, but the weights on {weights.gate.device}")
    if not x.is_contiguous():
        raise ValueError("x must be contiguous")


def ffn_output(
    y: Tensor,
    counts: Tensor,
    gate_used: Tensor | None,
    up_used: Tensor | None,
    weights: FfnWeights,
    gates: Tensor | None = None,
) -> FfnOutput:
    """What a call returns.

    Args:
        gate_used, up_used: [B] int64, inputs that count; None where there are no thresholds.
        gates: [B] int64, rows of gate read; None for all.
    """
    if gate_used is None and up_used is None and weights.down_input is None:
        return FfnOutput(y, counts, None, gates)
    nothing = torch.zeros_like(counts[:, 0])
    down_used = nothing if weights.down_input is None else counts[:, 1]
    used = [nothing if one is None else one for one in (gate_used, up_used)]
    return FfnOutput(y, counts, torch.stack([*used, down_used], 1), gates)


__all__ = [
    "PHI",
    "PSI",
    "FfnOutput",
    "FfnWeights",
    "check_candidates",
    "check_input",
    "ffn_output",
]
