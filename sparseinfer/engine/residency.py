"""Which neurons of a model live on the GPU, where not all of them fit.

What limits such a model is what the CPU has to read for a token. Hot neurons cost it nothing; cold
ones cost what decides whether they fire (of gate-first weights a third of them) and, where they do,
the rest. So the memory goes, in this order, to

1. what must be on the GPU: embedding, head, attention, keys and values;
2. guides (`kernels.gated_ffn.guide`): what decides about cold neurons, of as many layers as it can
   hold, since it saves the CPU a read in every token;
3. neurons of all layers, those first that save the CPU the most bytes per byte of the GPU: in
   layers alike, those that fire most often.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparseinfer.engine.settings import size_text
from sparseinfer.errors import ConfigError
from sparseinfer.kernels.gated_ffn.neurons import NeuronBytes, why_whole
from sparseinfer.packed import Weights

_LESS = (
    "raise --gpu-memory, make the model smaller with --weights int8 or int4, or run fewer or "
    "shorter sequences"
)


@dataclass(frozen=True, eq=False)
class Residency:
    """Where the neurons of each layer are."""

    hot: tuple[Tensor, ...]
    """int64, ascending: the neurons of each layer that are on the GPU; maybe all, maybe none."""
    guided: tuple[bool, ...]
    """Whether the GPU decides which cold neurons of a layer are computed."""
    gpu_bytes: int
    """On the GPU, with what must be there."""
    cpu_bytes: int
    """Of the rows and vectors of cold neurons."""
    hot_firings: float
    """Fraction of all firings of neurons that are expected to be of hot ones, in [0, 1]."""
    cpu_read: float
    """Bytes that the CPU is expected to read for a token."""

    @property
    def hot_neurons(self) -> int:
        """On the GPU, of all layers."""
        return sum(map(len, self.hot))

    def __str__(self) -> str:
        return (
            f"{size_text(self.gpu_bytes)} on the GPU with {self.hot_neurons} neurons and "
            f"{self.hot_firings:.0%} of their firings, {size_text(self.cpu_bytes)} on the CPU, "
            f"which reads about {self.cpu_read / 1e6:.1f} MB for a token"
        )


def plan(
    budget: int,
    fixed: Mapping[str, int],
    layers: Sequence[NeuronBytes],
    rates: Sequence[Tensor],
    *,
    guides: bool = True,
) -> Residency:
    """Fills a budget with guides and hot neurons.

    Equal gains go to the lower layer, then to the lower neuron.

    Args:
        budget: bytes of the GPU.
        fixed: what must be there -> bytes.
        layers: what neurons weigh (`neuron_bytes`).
        rates: fp32 [I] of each layer: fraction of tokens for which neurons fire.
        guides: False has none, so that all that is left goes to neurons.

    Raises:
        ConfigError: a budget that what must be there does not fit in.
    """
    left = _left(budget, fixed, layers)
    guided = _guided(left, layers, rates) if guides else [False] * len(layers)
    left -= sum(one.neurons * one.guide for one, by in zip(layers, guided, strict=True) if by)
    gains, costs = [], []
    for one, rate, by in zip(layers, rates, guided, strict=True):
        cost = one.hot - one.guide if by else one.hot
        gains.append(_cold_reads(one, rate, by) / cost)
        costs.append(torch.full((one.neurons,), cost, dtype=torch.int64))
    order = torch.cat(gains).argsort(descending=True, stable=True)
    fits = int((torch.cat(costs)[order].cumsum(0) <= left).sum())
    chosen = torch.zeros(len(order), dtype=torch.bool)
    chosen[order[:fits]] = True
    parts = chosen.split([one.neurons for one in layers])
    return _residency([part.nonzero().flatten() for part in parts], guided, fixed, layers, rates)


def whole_layers(
    budget: int,
    fixed: Mapping[str, int],
    layers: Sequence[NeuronBytes],
    rates: Sequence[Tensor],
) -> Residency:
    """The same budget filled with all neurons of the first layers, and no guides: what engines do
    that know nothing of neurons. Arguments and errors as `plan`."""
    left = _left(budget, fixed, layers)
    hot = []
    for one in layers:
        left -= one.neurons * one.hot
        hot.append(torch.arange(one.neurons if left >= 0 else 0))
    return _residency(hot, [False] * len(layers), fixed, layers, rates)


def neuron_bytes(weights: Weights) -> list[NeuronBytes]:
    """What neurons of each layer weigh.

    Raises:
        ConfigError: layers that cannot be divided between GPU and CPU.
    """
    for layer in weights.layers:
        if reason := why_whole(layer.ffn):
            raise ConfigError(
                f"--gpu-memory divides layers by neurons, which does not go with a model whose FFN "
                f"{reason}: leave it out, or make the model smaller with --weights int8 or int4"
            )
    return [NeuronBytes.of(layer.ffn) for layer in weights.layers]


def fixed_bytes(weights: Weights) -> dict[str, int]:
    """Bytes of what a GPU holds of a model besides its neurons."""
    tied = weights.head is weights.embedding
    matrices = [weights.embedding] if tied else [weights.embedding, weights.head]
    attention = vectors = 0
    for layer in weights.layers:
        for part in (*layer.inward, layer.outward):
            attention += part.weight.rows * part.weight.row_bytes
            vectors += _nbytes(part.bias, part.threshold)
        vectors += _nbytes(layer.input_norm, layer.ffn_norm, layer.ffn.down_bias)
    return {
        "embedding and head": sum(one.rows * one.row_bytes for one in matrices),
        "attention": attention,
        "norms and biases": vectors + _nbytes(weights.final_norm),
    }


def _nbytes(*tensors: Tensor | None) -> int:
    return sum(0 if one is None else one.nbytes for one in tensors)


def _left(budget: int, fixed: Mapping[str, int], layers: Sequence[NeuronBytes]) -> int:
    """Bytes for guides and neurons."""
    parts = {**fixed, "predictors": sum(one.shared for one in layers)}
    least = sum(parts.values())
    if budget < least:
        named = ", ".join(f"{name} {size_text(size)}" for name, size in parts.items() if size)
        raise ConfigError(
            f"--gpu-memory {size_text(budget)} is too little: "
            f"{size_text(least, at_least=True)} must be on the GPU ({named}); {_LESS}"
        )
    return budget - least


def _guided(left: int, layers: Sequence[NeuronBytes], rates: Sequence[Tensor]) -> list[bool]:
    """The layers whose guides fit, those first that save the most."""
    saved = [
        float((_cold_reads(one, rate, False) - _cold_reads(one, rate, True)).sum())
        for one, rate in zip(layers, rates, strict=True)
    ]
    guided = [False] * len(layers)
    sizes = [one.neurons * one.guide for one in layers]
    for index in sorted(range(len(layers)), key=lambda index: -saved[index] / sizes[index]):
        if layers[index].guidable and saved[index] > 0 and sizes[index] <= left:
            guided[index] = True
            left -= sizes[index]
    return guided


def _cold_reads(one: NeuronBytes, rate: Tensor, guided: bool) -> Tensor:
    """fp64 [I]: bytes that the CPU reads for a token, of neurons that are cold."""
    if guided:
        return rate.double() * one.rows
    return one.deciding + rate.double() * one.computing


def _residency(
    hot: Sequence[Tensor],
    guided: Sequence[bool],
    fixed: Mapping[str, int],
    layers: Sequence[NeuronBytes],
    rates: Sequence[Tensor],
) -> Residency:
    gpu = sum(fixed.values())
    cpu = 0
    read = firings = hot_firings = 0.0
    needed = []
    for ids, by, one, rate in zip(hot, guided, layers, rates, strict=True):
        cold = one.neurons - len(ids)
        # A guide of no neurons is none.
        by = by and cold > 0
        needed.append(by)
        gpu += one.shared + len(ids) * one.hot + (cold * one.guide if by else 0)
        cpu += cold * one.hot
        reads = _cold_reads(one, rate, by)
        read += float(reads.sum() - reads[ids].sum())
        firings += float(rate.double().sum())
        hot_firings += float(rate[ids].double().sum())
    return Residency(
        hot=tuple(hot),
        guided=tuple(needed),
        gpu_bytes=gpu,
        cpu_bytes=cpu,
        hot_firings=hot_firings / firings if firings else 1.0,
        cpu_read=max(read, 0.0),
    )


__all__ = ["Residency", "fixed_bytes", "neuron_bytes", "plan", "whole_layers"]
