"""Thresholds of single neurons that give a wanted sparsity, for the benchmark's sparse rows.

`chess`: a gate value counts as much as its up value is large on average (2409.01366). `sketch`: the
estimate of a neuron's output by a 4-bit copy of gate and up, or by the high half of int8 weights,
times the norm of its row of down. Both have one quantile for all neurons of a layer and are found
in sequence, as in `calibrate`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from sparseinfer import arch
from sparseinfer.bench.calibrate import calibration_model, masked_at_quantile
from sparseinfer.bench.settings import SKETCH_BITS
from sparseinfer.checkpoint import Checkpoint
from sparseinfer.kernels.gated_ffn.activations import activation
from sparseinfer.kernels.matrix import Matrix
from sparseinfer.kernels.planes import PlaneMatrix
from sparseinfer.kernels.quantize import quantize
from sparseinfer.kernels.sketch import Sketch
from sparseinfer.kernels.sketch.matrix import side_by_side
from sparseinfer.kernels.sketch.reference import estimates

Scores = Callable[[Any, str, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""scores(mlp, phi, x [T, H], a [T, I], u [T, I]) -> magnitudes [T, I] that thresholds are on, and
how much those of each neuron weigh [I]; a = phi(gate), u = up."""


def chess_in_sequence(checkpoint: Checkpoint, ids: Sequence[int], sparsity: float) -> list[Tensor]:
    """One threshold [I] per layer on |phi(gate)|; arguments as `calibrate.thresholds_in_sequence`.

    Raises:
        CalibrationError: activations that are not finite.
    """
    return _in_sequence(checkpoint, ids, sparsity, _chess)


def sketch_in_sequence(
    checkpoint: Checkpoint, ids: Sequence[int], sparsity: float, weights: str
) -> list[Tensor]:
    """One threshold [I] per layer on what a sketch estimates.

    Args:
        weights: int8 are sketched by their high halves, others by a copy of 4 bits.

    Raises:
        CalibrationError: activations that are not finite.
    """

    def scores(mlp: Any, phi: str, x: Tensor, _a: Tensor, _u: Tensor) -> tuple[Tensor, Tensor]:
        sketch = _sketch(mlp.gate_proj.weight.detach(), mlp.up_proj.weight.detach(), weights)
        biases = {"gate_bias": mlp.gate_proj.bias, "up_bias": mlp.up_proj.bias}
        return estimates(x, sketch, phi=phi, psi="id", **biases), mlp.down_proj.weight.norm(dim=0)

    return _in_sequence(checkpoint, ids, sparsity, scores)


def _chess(_mlp: Any, _phi: str, _x: Tensor, a: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    return a.abs(), u.abs().mean(0)


def _sketch(gate: Tensor, up: Tensor, weights: str) -> Sketch:
    if weights == "int8":
        return Sketch(*(PlaneMatrix.of(quantize(one, "int8")) for one in (gate, up)))
    return Sketch(*side_by_side(Matrix.of(gate), Matrix.of(up), SKETCH_BITS))


def _in_sequence(
    checkpoint: Checkpoint, ids: Sequence[int], sparsity: float, scores: Scores
) -> list[Tensor]:
    model = calibration_model(checkpoint)
    phi = arch.ACTIVATIONS[checkpoint.raw.get("hidden_act") or "silu"][0]
    found: list[Tensor] = []
    for layer, passes in model.run(torch.tensor([list(ids)])):
        mlp: Any = model.layer.get_submodule("mlp")

        def masked(x: Tensor, mlp: Any = mlp, layer: int = layer) -> Tensor:
            rows = x.reshape(-1, x.shape[-1])
            a, u = activation(phi, mlp.gate_proj(rows)), mlp.up_proj(rows)
            magnitudes, weight = scores(mlp, phi, rows, a, u)
            weight = weight.clamp_min(1e-20)
            _, theta = masked_at_quantile(magnitudes * weight, sparsity, f"layer {layer}")
            found.append(theta / weight)
            h = torch.where(magnitudes < found[-1], 0.0, a * u)
            return linear(h, mlp.down_proj.weight, mlp.down_proj.bias).view(x.shape)

        mlp.forward = masked
        try:
            for _ in passes:
                pass
        finally:
            del mlp.forward
    return [one.detach().clone() for one in found]
