"""A model's weights as the kernels read them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sparseinfer.kernels.gated_ffn import FfnWeights
from sparseinfer.kernels.matrix import Format, Matrix


@dataclass(frozen=True)
class LayerWeights:
    """One decoder layer: norms and biases fp32, matrices in the model's format."""

    input_norm: Tensor
    """[H]"""
    qkv: Matrix
    """[(num_heads + 2 num_kv_heads) head_dim, H]: q, k and v, one after the other."""
    qkv_bias: Tensor | None
    o: Matrix
    """[H, num_heads head_dim]"""
    o_bias: Tensor | None
    ffn_norm: Tensor
    """[H]"""
    ffn: FfnWeights
    """Gate rows [I, H]; up and down rows of one neuron lie side by side."""


@dataclass(frozen=True)
class Weights:
    """A whole model. `head` is `embedding` itself where they are tied."""

    embedding: Matrix
    """[V, H]"""
    layers: tuple[LayerWeights, ...]
    final_norm: Tensor
    """[H]"""
    head: Matrix
    """[V, H]"""

    @property
    def format(self) -> Format:
        """Format of the matrices of the layers."""
        return self.layers[0].qkv.format

    @property
    def head_format(self) -> Format:
        """Format of embedding and head."""
        return self.head.format
