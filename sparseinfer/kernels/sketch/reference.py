"""Sketch estimates in plain torch."""

from __future__ import annotations

from torch import Tensor

from sparseinfer.kernels.gated_ffn.activations import activation, up_activation
from sparseinfer.kernels.sketch import Sketch


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
    rounded = sketch.rounded(x)
    g = rounded @ sketch.gate.sketch_float().T
    u = rounded @ sketch.up.sketch_float().T
    if gate_bias is not None:
        g = g + gate_bias
    if up_bias is not None:
        u = u + up_bias
    return (activation(phi, g) * up_activation(psi, u)).abs()


def reached(estimate: Tensor, threshold: Tensor) -> Tensor:
    """Candidates bool [B, I] of estimates [B, I] and thresholds [I]."""
    return ~(estimate < threshold)
