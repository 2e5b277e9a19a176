"""Many tokens of one sequence at once, as matrix products with the same mask as decoding."""

from __future__ import annotations

import torch

from sparseinfer.config import ModelConfig
from sparseinfer.engine.cache import KVCache
from sparseinfer.engine.counts import layer_counts
from sparseinfer.engine.parts import ForwardParts, logit_blocks
from sparseinfer.engine.rope import Rope
from sparseinfer.kernels.attention.prefill import attend
from sparseinfer.kernels.decoder.cpu import AttentionShape
from sparseinfer.kernels.embedding.reference import embed
from sparseinfer.kernels.gated_ffn.prefill import gated_ffn
from sparseinfer.kernels.gemm import Gemm, Math, choose_math
from sparseinfer.kernels.linear.cpu import CpuLinear
from sparseinfer.kernels.linear.prefill import linear
from sparseinfer.kernels.norm.reference import rms_norm
from sparseinfer.kernels.projection.prefill import project
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

    def __call__(self, ids: torch.Tensor, cache: KVCache, *, all_logits: bool) -> ForwardParts:
        """Stores keys and values of ids [T] behind those of the cache, which has room for them. A
        part is a layer, a piece of the logits, or the last logits.

        Args:
            all_logits: logits of the other positions too, as pieces.

        Returns:
            logits [1, V] fp32 of the last position, whose bits are the same with either, and
            counts, see `sparseinfer.engine.counts`.
        """
        config = self._config
        tokens = ids.shape[0]
        start = cache.length
        hidden = embed(self._weights.embedding, ids)
        cos, sin = self._rope.tables(start, start + tokens)
        counts = []
        for index, layer in enumerate(self._weights.layers):
            x = self._normed(hidden, layer.input_norm)
            inward = [project(x, one, self._gemm) for one in layer.inward]
            attended = attend(
                inward[0].y if len(inward) == 1 else torch.cat([one.y for one in inward], 1),
                cache.keys[index],
                cache.values[index],
                cos,
                sin,
                start,
                self._attention,
                self._pool,
            )
            outward = project(attended, layer.outward, self._gemm)
            hidden += outward.y
            ffn = gated_ffn(self._normed(hidden, layer.ffn_norm), layer.ffn, self._gemm)
            hidden += ffn.y
            counts.append(layer_counts([*inward, outward], ffn))
            yield
        norm, eps = self._weights.final_norm, config.rms_norm_eps
        for begin, end in logit_blocks(tokens - 1) if all_logits else ():
            x = rms_norm(hidden[begin:end], norm, eps)
            yield linear(x, self._weights.head, None, self._exact)
        return self._last_logits(rms_norm(hidden[-1:], norm, eps)), torch.stack(counts)

    def _normed(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """What a layer's matrices get."""
        return rms_norm(x, weight, self._config.rms_norm_eps, relu=self._weights.input_relu)
