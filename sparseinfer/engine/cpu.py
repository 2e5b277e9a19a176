"""The CPU runner: prefill and decode of one sequence, fp32 activations over fp32 or bf16 weights.

A few rows at a time go through the native kernels, which skip inactive neurons; longer chunks go
through the reference operations, which are matrix products with the same mask.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from sparseinfer.config import ModelConfig
from sparseinfer.engine.cache import KVCache
from sparseinfer.engine.rope import Rope, rotate
from sparseinfer.engine.weights import LayerWeights, Weights
from sparseinfer.kernels.gated_ffn import FfnOutput
from sparseinfer.kernels.gated_ffn import reference as ffn_reference
from sparseinfer.kernels.gated_ffn.cpu import CpuGatedFfn
from sparseinfer.kernels.linear import reference as linear_reference
from sparseinfer.kernels.linear.cpu import CpuLinear
from sparseinfer.kernels.threads import CpuPool

NATIVE_ROWS = 8
"""Up to this many tokens at once the native kernels read fewer bytes than a matrix product."""


class _Projection:
    """A linear layer that picks its implementation by the number of rows."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, pool: CpuPool) -> None:
        self._weight, self._bias = weight, bias
        self._native = CpuLinear(weight, bias, pool)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] <= NATIVE_ROWS:
            return self._native(x.contiguous())
        return linear_reference.linear(x, self._weight, self._bias)


class _Layer:
    """Kernels of one decoder layer."""

    def __init__(self, weights: LayerWeights, pool: CpuPool) -> None:
        self.weights = weights
        self.qkv = _Projection(weights.qkv, weights.qkv_bias, pool)
        self.o = _Projection(weights.o, weights.o_bias, pool)
        self._native_ffn = CpuGatedFfn(weights.ffn, pool)

    def ffn(self, x: torch.Tensor) -> FfnOutput:
        if x.shape[0] <= NATIVE_ROWS:
            return self._native_ffn(x.contiguous())
        return ffn_reference.gated_ffn(x, self.weights.ffn)


class CpuRunner:
    """Computes logits of new tokens of one sequence, given its cache. Not thread-safe."""

    def __init__(self, config: ModelConfig, weights: Weights, rope: Rope, pool: CpuPool) -> None:
        self._config = config
        self._weights = weights
        self._rope = rope
        self._layers = [_Layer(layer, pool) for layer in weights.layers]
        self._head = _Projection(weights.head, None, pool)

    def new_cache(self) -> KVCache:
        return KVCache(self._config)

    def forward(
        self, ids: torch.Tensor, cache: KVCache, *, all_logits: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends tokens to a sequence.

        Args:
            ids: token ids [T], already checked against vocabulary and context.
            all_logits: logits of every position, not of the last one only.

        Returns:
            logits [T or 1, V] fp32, and rows of (up, down) read in each layer, int64 [L, 2].
        """
        config = self._config
        tokens = ids.shape[0]
        start = cache.length
        hidden = self._weights.embedding[ids].float()
        cos, sin = self._rope.tables(start, start + tokens)
        mask = attention_mask(start, tokens, config.sliding_window)
        counts = []
        for index, layer in enumerate(self._layers):
            x = rms_norm(hidden, layer.weights.input_norm, config.rms_norm_eps)
            attended = self._attend(layer.qkv(x), index, cache, cos, sin, mask)
            hidden = hidden + layer.o(attended)
            x = rms_norm(hidden, layer.weights.ffn_norm, config.rms_norm_eps)
            y, rows = layer.ffn(x)
            hidden = hidden + y
            counts.append(rows)
        cache.advance(tokens)
        if not all_logits:
            hidden = hidden[-1:]
        hidden = rms_norm(hidden, self._weights.final_norm, config.rms_norm_eps)
        return self._head(hidden), torch.stack(counts).sum(1)

    def _attend(
        self,
        qkv: torch.Tensor,
        layer: int,
        cache: KVCache,
        cos: torch.Tensor,
        sin: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """Attention output [T, num_heads head_dim] of projections [T, (heads + 2 kv) head_dim]."""
        heads, kv_heads, head_dim = (
            self._config.num_heads,
            self._config.num_kv_heads,
            self._config.head_dim,
        )
        split = qkv.view(qkv.shape[0], heads + 2 * kv_heads, head_dim).transpose(0, 1)
        rotated = rotate(split[: heads + kv_heads], cos, sin)
        keys, values = cache.append(layer, rotated[heads:], split[heads + kv_heads :])
        output = F.scaled_dot_product_attention(
            rotated[:heads][None],
            keys[None],
            values[None],
            attn_mask=mask,
            enable_gqa=heads != kv_heads,
        )
        return output[0].transpose(0, 1).reshape(qkv.shape[0], heads * head_dim)


def attention_mask(start: int, tokens: int, window: int | None) -> torch.Tensor | None:
    """Which of start + tokens positions each new token sees: bool [tokens, start + tokens].

    None where every new token sees all of them. With a window a token sees itself and the
    window - 1 positions before it (Mistral 7B, 2310.06825, section 2).
    """
    total = start + tokens
    if tokens == 1 and (window is None or total <= window):
        return None
    query = torch.arange(start, total)[:, None]
    key = torch.arange(total)[None, :]
    visible = key <= query
    if window is not None:
        visible &= key > query - window
    return visible


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm (1910.07467) of x [T, H] fp32."""
    return F.rms_norm(x, (x.shape[-1],), weight, eps)
