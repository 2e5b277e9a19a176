"""The gated feed-forward layer that computes only the neurons its threshold lets through.

    g = x @ gate.T + gate_bias    a = phi(g)           keep_i = |a_i| >= threshold_i and a_i != 0
    u = x @ up.T + up_bias        h_i = a_i * psi(u_i) if keep_i else 0
    y = h @ down + down_bias

A NaN activation counts as kept, so that bad input shows in the output. `reference` is plain torch
and serves many rows at once (prefill); `cpu` reads the rows of up and down of kept neurons only
(decode).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sparseinfer.kernels.matrix import Matrix

PHI = ("silu", "relu", "relu2")
PSI = ("id", "relu")


class FfnOutput(NamedTuple):
    """What one call returns."""

    y: Tensor
    """[B, H] fp32."""
    counts: Tensor
    """[B, 2] int64: rows of up read (neurons kept), rows of down read (of those, h != 0)."""


@dataclass(frozen=True)
class FfnWeights:
    """Weights of one layer, neuron-major: row i of each matrix belongs to neuron i.

    Args:
        gate, up: [I, H], of one format, on one device.
        down: [I, H], same format: the transpose of a Hugging Face `down_proj.weight`.
        threshold: [I] fp32, on |phi(g)|; inf switches a neuron off.
        phi: one of `PHI`; relu2 is relu(g) squared.
        psi: one of `PSI`; id leaves u as it is.
        gate_bias, up_bias: [I] fp32 or None.
        down_bias: [H] fp32 or None.

    Raises:
        ValueError: a shape, format, device, layout or name that does not fit, or a NaN threshold.
    """

    gate: Matrix
    up: Matrix
    down: Matrix
    threshold: Tensor
    phi: str
    psi: str
    gate_bias: Tensor | None = None
    up_bias: Tensor | None = None
    down_bias: Tensor | None = None

    def __post_init__(self) -> None:
        if self.phi not in PHI:
            raise ValueError(f"phi must be one of {', '.join(PHI)}, not {self.phi!r}")
        if self.psi not in PSI:
            raise ValueError(f"psi must be one of {', '.join(PSI)}, not {self.psi!r}")
        for name in ("up", "down"):
            other: Matrix = getattr(self, name)
            if other.shape != self.gate.shape:
                raise ValueError(f"{name} must be {list(self.gate.shape)}, not {list(other.shape)}")
            if other.format != self.gate.format:
                raise ValueError(f"{name} is {other.format}, but gate is {self.gate.format}")
            if other.device != self.gate.device:
                raise ValueError(f"{name} is on {other.device}, but gate on {self.gate.device}")
        intermediate, hidden = self.gate.shape
        self._check("threshold", intermediate)
        self._check("gate_bias", intermediate)
        self._check("up_bias", intermediate)
        self._check("down_bias", hidden)
        if bool(torch.isnan(self.threshold).any()):
            raise ValueError("threshold has NaN")

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
        return self.gate.shape[1]

    @property
    def intermediate(self) -> int:
        """I."""
        return self.gate.shape[0]


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


__all__ = ["PHI", "PSI", "FfnOutput", "FfnWeights", "check_input"]
