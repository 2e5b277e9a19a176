"""Sketch estimates in plain torch."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import linear

from sparseinfer.kernels.gated_ffn.activations import activation, up_activation
from sparseinfer.kernels.sketch import Sketch


class Estimator:
    """Estimates of one layer for many calls: both copies are held in fp32 [I, H].

    Args:
        gate_bias, up_bias: fp32 [I] or None.
    """

    def __init__(
        self,
        sketch: Sketch,
        *,
        phi: str,
        psi: str,
        gate_bias: Tensor | None = None,
        up_bias: Tensor | None = None,
    ) -> None:
        self._sketch = sketch
        self._gate, self._up = sketch.gate.sketch_float(), sketch.up.sketch_float()
        self._biases = gate_bias, up_bias
        self._phi, self._psi = phi, psi

    def __call__(self, x: Tensor) -> Tensor:
        """|phi(g^) psi(u^)| fp32 [B, I] of x [B, H] fp32."""
        rounded = self._sketch.rounded(x)
        g = linear(rounded, self._gate, self._biases[0])
        u = linear(rounded, self._up, self._biases[1])
        return (activation(self._phi, g) * up_activation(self._psi, u)).abs()


def estimates(
    x: Tensor,
    sketch: Sketch,
    *,
    phi: str,
    psi: str,
    gate_bias: Tensor | None = None,
    up_bias: Tensor | None = None,
) -> Tensor:
    """|phi(g^) psi(u^)| fp32 [B, I] of x [B, H] fp32."""
    estimator = Estimator(sketch, phi=phi, psi=psi, gate_bias=gate_bias, up_bias=up_bias)
    return estimator(x)


def reached(estimate: Tensor, threshold: Tensor) -> Tensor:
    """Candidates bool [B, I] of estimates [B, I] and thresholds [I]."""
    return ~(estimate < threshold)
