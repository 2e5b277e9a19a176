"""phi and psi of the gated FFN, in Triton."""

from __future__ import annotations

from sparseinfer.kernels.triton_language import tl, triton


@triton.jit
def phi_of(g, PHI: tl.constexpr):
    """The activation; NaN stays NaN."""
    if PHI == "silu":
        a = g / (1.0 + tl.exp(-g))
    else:
        a = tl.where(g < 0, 0.0, g)
        if PHI == "relu2":
            a = a * a
    return a


@triton.jit
def psi_of(u, PSI: tl.constexpr):
    """What a neuron's gate multiplies; NaN stays NaN."""
    v = u
    if PSI == "relu":
        v = tl.where(u < 0, 0.0, u)
    return v
