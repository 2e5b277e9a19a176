"""GPU kernels at full size against fp32 references: nothing is timed that is not right."""

from __future__ import annotations

import torch

from gpu_parts.layers import inputs, layer_copies
from sparseinfer.kernels.gated_ffn.gpu import GpuGatedFfn
from sparseinfer.kernels.gated_ffn.reference import gated_ffn
from sparseinfer.kernels.linear.gpu import GpuLinear
from sparseinfer.kernels.linear.reference import linear
from sparseinfer.kernels.matrix import Matrix

_TOLERANCE = 1e-2


def verify(shape: str, batches: tuple[int, ...], densities: tuple[float, ...]) -> float:
    """The largest relative error found.

    Raises:
        SystemExit: an error above 1e-2, NaN, or two calls that differ in a bit.
    """
    layer = layer_copies(shape)[0]
    gate = layer.weights.gate
    assert isinstance(gate, Matrix)
    worst = 0.0
    for batch in batches:
        x = inputs(shape, batch)
        worst = max(worst, _error(f"linear B={batch}", GpuLinear(gate, None)(x), linear(x, gate)))
        for density in densities:
            what = f"gated_ffn B={batch} density={density}"
            weights = layer.at(x, density)
            op, want = GpuGatedFfn(weights), gated_ffn(x, weights)
            found, again = op(x), op(x)
            if not torch.equal(found.y, again.y):
                raise SystemExit(f"{shape}: two calls of {what} differ")
            worst = max(worst, _error(what, found.y, want.y))
            candidates = torch.rand(batch, weights.intermediate, device="cuda") < density
            found, want = op(x, candidates), gated_ffn(x, weights, candidates)
            worst = max(worst, _error(f"{what} candidates", found.y, want.y))
    return worst


def _error(what: str, found: torch.Tensor, want: torch.Tensor) -> float:
    error = float((found - want).norm() / want.norm())
    if not error <= _TOLERANCE:  # false for NaN
        raise SystemExit(f"{what} is off its reference by {error:.1e}: nothing is timed")
    return error
