"""Random weights whose gates can be predicted: for the speed of models that are mostly at rest.

A trained ReLU model is sparse and predictable; random weights are neither. Here the FFNs have
ReLUs, gate biases that put a wanted fraction of neurons to rest, and gates mostly of low rank:

    W_gate = DEVIATION * (sqrt(1 - NOISE) * A diag(s) B + sqrt(NOISE) * N)    s_j = exp(-j / decay)

with A [I, k], B [k, H] and N [I, H] normal, rows of A diag(s) B scaled to mean square 1. Planted
are k = H / 8 directions, twice as many as `rank_of` gives a predictor, beside noise of all
directions: no predictor of that rank is exact.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

DEVIATION = 0.02
"""Of the normal distribution that all matrices are drawn from: what Llama models start training
at."""

NOISE = 0.02
"""Fraction of a gate's mean square that is not planted."""

_PLANTED = 8
_PREDICTED = 16


def rank_of(hidden: int) -> int:
    """Rank of a predictor for planted weights."""
    return max(1, hidden // _PREDICTED)


def planted_rank(hidden: int) -> int:
    """Directions that are planted."""
    return max(1, hidden // _PLANTED)


def planted_config(raw: dict[str, Any]) -> dict[str, Any]:
    """A raw config of a named shape, with ReLUs and biases in its FFNs."""
    return {**raw, "hidden_act": "relu", "mlp_bias": True}


def planted_tensor(
    name: str, shape: tuple[int, ...], sparsity: float, hidden: int, generator: torch.Generator
) -> Tensor | None:
    """The fp32 tensor of a Hugging Face name; None where it is as in other random models.

    Args:
        sparsity: fraction of neurons at rest, for inputs of mean square 1.
    """
    if name.endswith(".gate_proj.weight"):
        return _gate(shape, generator)
    if name.endswith(".gate_proj.bias"):
        quantile = NormalDist().inv_cdf(sparsity)
        return torch.full(shape, -quantile * DEVIATION * hidden**0.5)
    return torch.zeros(shape) if name.endswith(".bias") else None


def _gate(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """W_gate [I, H]."""
    rows, columns = shape
    rank = planted_rank(columns)
    scale = torch.exp(-torch.arange(rank) / (rank_of(columns) / 2))
    planted = torch.randn(rows, rank, generator=generator).mul_(scale)
    weight = planted @ torch.randn(rank, columns, generator=generator)
    weight *= (1 - NOISE) ** 0.5 / weight.square().mean(1, keepdim=True).sqrt()
    weight += torch.randn(rows, columns, generator=generator).mul_(NOISE**0.5)
    return weight.mul_(DEVIATION)
