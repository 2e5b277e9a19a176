"""FFN layers of random weights at real shapes, and the ways to compute them that are compared."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from sparseinfer.kernels.gated_ffn import FfnWeights
from sparseinfer.kernels.gated_ffn.activations import activation
from sparseinfer.kernels.linear.reference import linear as exact_linear
from sparseinfer.kernels.matrix import Matrix

SHAPES = {
    "llama2-7b": (4096, 11008),
    "llama3-8b": (4096, 14336),  # Mistral-7B's too
    "llama2-13b": (5120, 13824),
}
"""Name -> H, I."""

_ROTATED_BYTES = 2 << 30
"""Of copies that take turns: what a tenth of them reads is still more than L2 holds."""


@dataclass(frozen=True)
class Layer:
    """One copy of a layer.

    Attributes:
        weights: bf16, SiLU, with threshold 0.
        down_proj: bf16 [H, I], down as a dense product takes it.
    """

    weights: FfnWeights
    down_proj: Tensor

    def dense(self, x: Tensor) -> Tensor:
        """The layer in plain torch, x and result bf16 [B, H]."""
        gate, up = self.weights.gate, self.weights.up
        assert isinstance(gate, Matrix)
        assert isinstance(up, Matrix)
        return dense_ffn(x, gate.data, up.data, self.down_proj)

    def at(self, x: Tensor, density: float) -> FfnWeights:
        """The weights with the threshold that this part of the neurons reaches, over all rows of x
        [B, H] fp32."""
        if density == 1:
            return self.weights
        gate = self.weights.gate
        assert isinstance(gate, Matrix)
        a = activation(self.weights.phi, exact_linear(x, gate)).abs().flatten()
        level = a.kthvalue(max(1, round((1 - density) * a.numel()))).values
        return replace(self.weights, threshold=level.expand(self.weights.intermediate).clone())


def dense_ffn(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """down(silu(gate(x)) * up(x)), all of one dtype."""
    return linear(silu(linear(x, gate)) * linear(x, up), down)


def layer_copies(shape: str) -> list[Layer]:
    """As many copies as take turns, different from each other."""
    hidden, inner = SHAPES[shape]
    count = max(2, -(-_ROTATED_BYTES // (3 * 2 * hidden * inner)))
    return [_layer(hidden, inner, seed) for seed in range(count)]


def _layer(hidden: int, inner: int, seed: int) -> Layer:
    random = torch.Generator("cuda").manual_seed(seed)

    def weight() -> Tensor:
        drawn = torch.randn(inner, hidden, generator=random, device="cuda")
        return drawn.mul_(hidden**-0.5).bfloat16()

    gate, up, down = weight(), weight(), weight()
    threshold = torch.zeros(inner, device="cuda")
    weights = FfnWeights(*map(Matrix.of, (gate, up, down)), threshold, "silu", "id")
    return Layer(weights, down.T.contiguous())


def inputs(shape: str, batch: int) -> Tensor:
    """x fp32 [B, H] of size 1."""
    random = torch.Generator("cuda").manual_seed(batch)
    return torch.randn(batch, SHAPES[shape][0], generator=random, device="cuda")
