"""Many tokens of one sequence at once, as matrix products with the same mask as decoding."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from sparseinfer.config import ModelConfig
from sparseinfer.engine.cache import KVCache
from sparseinfer.engine.rope import Rope
from sparseinfer.kernels.attention.prefill import attend
from sparseinfer.kernels.decoder.cpu import AttentionShape
from sparseinfer.kernels.gated_ffn.prefill import gated_ffn
from sparseinfer.kernels.gemm import Gemm, Math, choose_math
from sparseinfer.kernels.linear.cpu import CpuLinear
from sparseinfer.kernels.linear.prefill import linear
from sparseinfer.kernels.matrix import Matrix
from sparseinfer.kernels.threads import CpuPool
from sparseinfer.packed import Weights


class Prefill:
    """Computes a chunk of tokens of one sequence; activations are fp32."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        rope: Rope,
        attention: AttentionShape,
        pool: CpuPool,
        math: Math | None = None,
    ) -> None:
        """math: of the layers' products; None takes what suits the weights and this CPU."""
        self._config = config
        self._weights = weights
        self._rope = rope
        self._attention = attention
        self._pool = pool
        self._gemm = Gemm(math or choose_math(weights.format), pool)
        # Logits are compared with each other and summed up: they are worth the digits.
        self._exact = Gemm("fp32", pool)
        self._last_logits = CpuLinear(weights.head, None, pool)

    def __call__(
        self, ids: torch.Tensor, cache: KVCache, *, all_logits: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores keys and values of ids [T] behind those of the cache, which has room for them.

        Returns:
            logits [T or 1, V] fp32, and rows of (up, down) read in each layer, int64 [L, 2].
        """
        config = self._config
        tokens = ids.shape[0]
        start = cache.length
        hidden = embed(self._weights.embedding, ids)
        cos, sin = self._rope.tables(start, start + tokens)
        counts = []
        for index, layer in enumerate(self._weights.layers):
            x = rms_norm(hidden, layer.input_norm, config.rms_norm_eps)
            attended = attend(
                linear(x, layer.qkv, layer.qkv_bias, self._gemm),
                cache.keys[index],
                cache.values[index],
                cos,
                sin,
                start,
                self._attention,
                self._pool,
            )
            hidden += linear(attended, layer.o, layer.o_bias, self._gemm)
            x = rms_norm(hidden, layer.ffn_norm, config.rms_norm_eps)
            y, rows = gated_ffn(x, layer.ffn, self._gemm)
            hidden += y
            counts.append(rows.sum(0))
        if not all_logits:
            hidden = hidden[-1:]
        hidden = rms_norm(hidden, self._weights.final_norm, config.rms_norm_eps)
        if all_logits:
            logits = linear(hidden, self._weights.head, None, self._exact)
        else:
            logits = self._last_logits(hidden)
        return logits, torch.stack(counts)


def embed(embedding: Matrix, ids: torch.Tensor) -> torch.Tensor:
    """Rows ids [T] of the embedding [V, H] as fp32 [T, H]."""
    return Matrix(embedding.format, embedding.data[ids], embedding.columns).float()


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm (1910.07467) of x [T, H] fp32."""
    return F.rms_norm(x, (x.shape[-1],), weight, eps)
