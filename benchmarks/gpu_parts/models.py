"""Whole models of random bf16 weights, made on the GPU: nothing is read from a disk."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

from sparseinfer import arch
from sparseinfer.bench.planted import DEVIATION, planted_tensor
from sparseinfer.bench.planted_predictors import RECALL, rank_of
from sparseinfer.bench.shapes import named_shape
from sparseinfer.config import ModelConfig
from sparseinfer.kernels.gated_ffn import FfnWeights
from sparseinfer.kernels.lowrank import LowRank
from sparseinfer.kernels.lowrank.reference import logits
from sparseinfer.kernels.matrix import Matrix
from sparseinfer.packed import LayerWeights, Weights
from sparseinfer.predictors.threshold import logit_threshold

_DRAWN = 1 << 20
_INPUTS = 2048


@dataclass(frozen=True)
class Shape:
    """A Llama of some sizes.

    Attributes:
        raw: its `config.json`.
    """

    name: str
    raw: dict[str, Any]

    @classmethod
    def named(cls, name: str) -> Shape:
        """One of `sparseinfer.bench.shapes`."""
        return cls(name, named_shape(name))

    @classmethod
    def tiny(cls) -> Shape:
        """For the interpreter, which takes seconds for what a GPU does in microseconds."""
        sizes = {
            "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1, "head_dim": 32,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64,
            "max_position_embeddings": 64,
        }  # fmt: skip
        return cls("tiny", {**named_shape("llama2-7b"), **sizes})

    @property
    def config(self) -> ModelConfig:
        return arch.model_config(self.raw, self.name)


def silu_weights(config: ModelConfig, device: torch.device) -> Weights:
    """A dense SiLU model: thresholds are 0."""
    draw = _Draw(device)
    layers = tuple(_layer(config, draw, _silu_ffn(config, draw)) for _ in range(config.num_layers))
    return _model(config, draw, layers)


def at_density(weights: Weights, density: float) -> Weights:
    """The same SiLU model with the threshold that this part of the neurons reaches.

    Normed inputs have mean square 1 and weights `DEVIATION`, so gates are normal in every layer.
    """
    if density == 1:
        return weights
    ffn = weights.layers[0].ffn
    random = torch.Generator().manual_seed(1)
    gates = torch.randn(_DRAWN, generator=random).mul_(DEVIATION * ffn.hidden**0.5)
    level = silu(gates).abs().kthvalue(max(1, round((1 - density) * _DRAWN))).values
    threshold = torch.full_like(ffn.threshold, float(level))
    return _with_ffns(weights, [replace(one.ffn, threshold=threshold) for one in weights.layers])


def planted_weights(config: ModelConfig, sparsity: float, device: torch.device) -> Weights:
    """A ReLU model as `bench.planted` has it, each layer with a low-rank predictor of its gate.

    All layers have the same gate and predictor, each in memory of its own.
    """
    draw = _Draw(device)
    shape = (config.intermediate_size, config.hidden_size)
    gate, bias = (
        planted_tensor(f"mlp.gate_proj.{part}", size, sparsity, config.hidden_size, draw.random)
        for part, size in (("weight", shape), ("bias", shape[:1]))
    )
    assert gate is not None  # planted
    assert bias is not None
    gate, bias = gate.to(device), bias.to(device)
    predictor = _predictor(gate, bias, draw)
    layers = []
    for _ in range(config.num_layers):
        ffn = FfnWeights(
            Matrix.of(gate.bfloat16()),
            draw.matrix(*shape),
            draw.matrix(*shape),
            torch.zeros(shape[0], device=device),
            "relu",
            "id",
            gate_bias=bias,
            predictor=replace(
                predictor,
                inward=Matrix.of(predictor.inward.data.clone()),
                outward=Matrix.of(predictor.outward.data.clone()),
            ),
        )
        layers.append(_layer(config, draw, ffn))
    return _model(config, draw, tuple(layers))


def without_predictor(weights: Weights, phi: str | None = None) -> Weights:
    """Gate-first; with SiLU in place of ReLU every neuron is computed."""
    return _with_ffns(
        weights,
        [replace(one.ffn, predictor=None, phi=phi or one.ffn.phi) for one in weights.layers],
    )


def _predictor(gate: Tensor, bias: Tensor, draw: _Draw) -> LowRank:
    """The directions of the gate that vary most on white inputs, and the threshold that reaches
    the recall on others."""
    rank = rank_of(gate.shape[1])
    left, values, right = torch.svd_lowrank(gate, q=min(rank + 32, *gate.shape), niter=4)
    root = values[:rank].sqrt()
    inward = Matrix.of((right[:, :rank] * root).T.contiguous().bfloat16())
    outward = Matrix.of((left[:, :rank] * root).contiguous().bfloat16())
    free = LowRank(inward, outward, bias)
    x = draw.normal(_INPUTS, gate.shape[1])
    fires = x @ gate.T + bias > 0
    threshold = logit_threshold(logits(x, free).cpu(), fires.cpu(), RECALL)
    return replace(free, bias=bias - threshold)


class _Draw:
    """Normal numbers, drawn where they are wanted."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.random = torch.Generator().manual_seed(0)
        self._there = torch.Generator(device).manual_seed(0)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._there, device=self.device)

    def matrix(self, rows: int, columns: int) -> Matrix:
        return Matrix.of(self.normal(rows, columns).mul_(DEVIATION).bfloat16())


def _silu_ffn(config: ModelConfig, draw: _Draw) -> FfnWeights:
    shape = (config.intermediate_size, config.hidden_size)
    gate, up, down = (draw.matrix(*shape) for _ in range(3))
    return FfnWeights(gate, up, down, torch.zeros(shape[0], device=draw.device), "silu", "id")


def _layer(config: ModelConfig, draw: _Draw, ffn: FfnWeights) -> LayerWeights:
    hidden, inner = config.hidden_size, config.num_heads * config.head_dim
    rows = inner + 2 * config.num_kv_heads * config.head_dim
    ones = torch.ones(hidden, device=draw.device)
    return LayerWeights(
        ones, draw.matrix(rows, hidden), None, draw.matrix(hidden, inner), None, ones, ffn
    )


def _model(config: ModelConfig, draw: _Draw, layers: tuple[LayerWeights, ...]) -> Weights:
    size = (config.vocab_size, config.hidden_size)
    embedding = draw.matrix(*size)
    head = embedding if config.tied_embeddings else draw.matrix(*size)
    return Weights(embedding, layers, torch.ones(config.hidden_size, device=draw.device), head)


def _with_ffns(weights: Weights, ffns: list[FfnWeights]) -> Weights:
    pairs = zip(weights.layers, ffns, strict=True)
    return replace(weights, layers=tuple(replace(layer, ffn=ffn) for layer, ffn in pairs))
