"""Whole models of random bf16 weights on the CPU, a few of whose neurons fire most of the time.

In trained ReLU models a minority of neurons does most of the firing (PowerInfer, 2312.12456), which
random weights lack. Here the bias of a neuron's gate makes it fire as often as wanted.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from gpu_parts.models import planted_weights, without_predictor
from sparseinfer.bench.planted import DEVIATION
from sparseinfer.config import ModelConfig
from sparseinfer.kernels.gated_ffn import FfnWeights
from sparseinfer.kernels.matrix import Matrix
from sparseinfer.kernels.placement import placed
from sparseinfer.packed import Weights

SKEW = 1.0
"""The neuron of rank r of N fires in proportion to (r / N) ** -SKEW: at a density of 0.1 a fifth of
them does two thirds of all firing."""

_MOST = 0.95


def planted_rates(neurons: int, density: float) -> Tensor:
    """fp64 [I]: how often each neuron is to fire, the most active first, `density` on average."""
    shape = ((torch.arange(neurons, dtype=torch.float64) + 0.5) / neurons) ** -SKEW
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        small = float((middle * shape).clamp(max=_MOST).mean()) < density
        low, high = (middle, high) if small else (low, middle)
    return (low * shape).clamp(max=_MOST)


def skewed_weights(config: ModelConfig, density: float, device: torch.device) -> Weights:
    """A ReLU model, gate-first, whose layers differ in which neurons are the active ones.

    Matrices of all layers are equal, each in memory of its own.

    Args:
        density: fraction of neurons that fire for a token, for inputs of mean square 1.
        device: where the random numbers are drawn.
    """
    one = planted_weights(replace(config, num_layers=1), 1 - density, device)
    one = placed(without_predictor(one), "cpu")
    random = torch.Generator().manual_seed(0)
    quantiles = torch.special.ndtri(planted_rates(config.intermediate_size, density)).float()
    biases = quantiles * DEVIATION * config.hidden_size**0.5
    layers = []
    for _ in range(config.num_layers):
        order = torch.randperm(config.intermediate_size, generator=random)
        ffn = _copied(one.layers[0].ffn, biases[order])
        layers.append(replace(one.layers[0], ffn=ffn))
    return replace(one, layers=tuple(layers))


def _copied(ffn: FfnWeights, bias: Tensor) -> FfnWeights:
    """In memory of its own, up and down side by side as in packs."""
    gate, up, down = ffn.gate, ffn.up, ffn.down
    assert isinstance(gate, Matrix)
    assert isinstance(up, Matrix)
    both = torch.stack((up.data, down.data), 1)
    return replace(
        ffn,
        gate=Matrix.of(gate.data.clone()),
        up=Matrix.of(both[:, 0]),
        down=Matrix.of(both[:, 1]),
        threshold=ffn.threshold.clone(),
        gate_bias=bias,
    )
