"""Layers of every kind whose neurons can be taken apart, for tests of parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from matrices import bundle
from torch import Tensor

from sparseinfer.kernels.gated_ffn import FfnWeights
from sparseinfer.kernels.gated_ffn.activations import activation
from sparseinfer.kernels.lowrank import LowRank
from sparseinfer.kernels.lowrank.reference import logits
from sparseinfer.kernels.matrix import Format, Matrix
from sparseinfer.kernels.quantize import quantize
from sparseinfer.kernels.sign import SignBits
from sparseinfer.kernels.sketch import Sketch
from sparseinfer.kernels.sketch.matrix import side_by_side
from sparseinfer.kernels.sketch.reference import estimates
from sparseinfer.packed.sketched import in_planes

HIDDEN, NEURONS = 70, 50


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(rows: int) -> Tensor:
    """x [rows, HIDDEN] fp32: the first of 17 rows that are the same in every test."""
    return normal(17, HIDDEN, seed=9)[:rows].contiguous()


def _layer(format: Format, phi: str = "silu", psi: str = "id") -> FfnWeights:
    """With biases, and up and down side by side."""
    rows = [quantize(normal(NEURONS, HIDDEN, seed=s) * HIDDEN**-0.5, format) for s in (1, 2, 3)]
    up, down = bundle(rows[1], rows[2])
    biases = [normal(n, seed=n) * 0.1 for n in (NEURONS, NEURONS, HIDDEN)]
    return FfnWeights(rows[0], up, down, torch.zeros(NEURONS), phi, psi, *biases)


def _between(values: Tensor, density: float) -> Tensor:
    """A threshold [I] for values [B, I] that rounding decides nowhere."""
    level = float(values.quantile(1 - density))
    close = ((values - level).abs() <= 1e-2 * level + 1e-5).any(0)
    return torch.where(close, 0.0, level)


def _gated(format: Format, phi: str = "silu", psi: str = "id") -> FfnWeights:
    weights = _layer(format, phi, psi)
    g = inputs(17) @ weights.gate.float().T + weights.gate_bias
    return replace(weights, threshold=_between(activation(phi, g).abs(), 0.4))


def _sketched(bits: int) -> FfnWeights:
    """With a sketch beside the weights, or for 8 in planes."""
    weights = _layer("int8" if bits == 8 else "bf16")
    assert isinstance(weights.gate, Matrix)
    assert isinstance(weights.up, Matrix)
    if bits == 8:
        weights = in_planes(weights, weights.gate, weights.up)
    else:
        sides = side_by_side(weights.gate, weights.up, bits)
        weights = replace(weights, sketch=Sketch(*sides))
    assert weights.sketch is not None
    biases = {"gate_bias": weights.gate_bias, "up_bias": weights.up_bias}
    estimate = estimates(inputs(17), weights.sketch, phi="silu", psi="id", **biases)
    return replace(weights, threshold=_between(estimate, 0.4))


def _lowrank() -> FfnWeights:
    weights = _gated("bf16", "relu")
    inward, outward = quantize(normal(6, HIDDEN, seed=4), "bf16"), normal(NEURONS, 6, seed=5)
    predictor = LowRank(inward, quantize(outward, "bf16"), torch.zeros(NEURONS))
    found = logits(inputs(17), predictor)
    shifted = replace(predictor, bias=-_between(found.abs(), 0.8) + 0.01)
    close = (logits(inputs(17), shifted).abs() < 1e-3).any(0)
    bias = torch.where(close, 1000.0, shifted.bias)
    return replace(weights, predictor=replace(predictor, bias=bias))


def _signed() -> FfnWeights:
    weights = _gated("int8", "relu")
    assert isinstance(weights.gate, Matrix)
    return replace(weights, predictor=SignBits.of(weights.gate, 1.0))


def _down_input() -> FfnWeights:
    weights = _gated("fp32", "relu")
    return replace(weights, down_input=torch.full((NEURONS,), 0.2))


VARIANTS: dict[str, Callable[[], FfnWeights]] = {
    "bf16": lambda: _gated("bf16"),
    "fp32 relu": lambda: _gated("fp32", "relu", "relu"),
    "int8": lambda: _gated("int8"),
    "int4": lambda: _gated("int4"),
    "bf16 relu2": lambda: _gated("bf16", "relu2"),
    "lowrank": _lowrank,
    "sign": _signed,
    "sketch 3": lambda: _sketched(3),
    "sketch 4": lambda: _sketched(4),
    "planes": lambda: _sketched(8),
    "down input": _down_input,
}
