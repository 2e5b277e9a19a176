"""Which neurons fire, in plain torch, on the device of the weights."""

from __future__ import annotations

from torch import Tensor

from sparseinfer.kernels.gated_ffn import FfnWeights
from sparseinfer.kernels.gated_ffn.activations import activation
from sparseinfer.kernels.gated_ffn.reference import choose, kept
from sparseinfer.kernels.projection.reference import project


def fires(x: Tensor, weights: FfnWeights) -> Tensor:
    """bool [T, I]: the neurons that `reference.gated_ffn` keeps, before top-k.

    Args:
        x: [T, H] fp32, contiguous.
    """
    a = activation(weights.phi, project(x, weights.gate_projection).y)
    keep = ~(a == 0) if weights.sketch is not None else kept(a, weights.threshold)
    chosen = choose(x, weights)
    return keep if chosen is None else keep & chosen
