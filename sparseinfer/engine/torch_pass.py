"""Many tokens of one sequence through the model in plain torch, on the device of its weights.

No neuron is skipped: masks are applied to what was computed. The counts say what sparse kernels
would have read.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from sparseinfer.config import ModelConfig
from sparseinfer.engine.cache import KVCache
from sparseinfer.engine.counts import layer_counts
from sparseinfer.engine.parts import ForwardParts, logit_blocks
from sparseinfer.engine.rope import Rope
from sparseinfer.kernels.attention.reference import attend
from sparseinfer.kernels.decoder.cpu import AttentionShape
from sparseinfer.kernels.embedding.reference import embed
from sparseinfer.kernels.gated_ffn import FfnOutput
from sparseinfer.kernels.gated_ffn.reference import gated_ffn
from sparseinfer.kernels.gemm import Math
from sparseinfer.kernels.linear.reference import linear
from sparseinfer.kernels.norm.reference import rms_norm
from sparseinfer.kernels.projection.reference import project
from sparseinfer.packed import Weights


class TorchPass:
    """Computes a chunk of tokens; activations are fp32.

    Args:
        weights: on one device.
        math: of the layers' products. Logits are fp32 throughout: they are compared and summed up.
        ffn: computes the FFN of a layer by its number; None: by its weights, which else may be on
            another device.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        rope: Rope,
        math: Math = "fp32",
        ffn: Callable[[int, torch.Tensor], FfnOutput] | None = None,
    ) -> None:
        self._config = config
        self._weights = weights
        self._rope = rope
        self._math: Math = math
        self._ffn = ffn or self._by_weights
        self._attention = AttentionShape(
            config.num_heads, config.num_kv_heads, config.head_dim, config.sliding_window
        )

    def __call__(self, ids: torch.Tensor, cache: KVCache, *, all_logits: bool) -> ForwardParts:
        """As `sparseinfer.engine.prefill.Prefill`."""
        tokens, start = ids.shape[0], cache.length
        hidden = embed(self._weights.embedding, ids)
        cos, sin = self._rope.tables(start, start + tokens)
        counts = []
        for index, layer in enumerate(self._weights.layers):
            x = self._normed(hidden, layer.input_norm)
            inward = [project(x, one, self._math) for one in layer.inward]
            qkv = inward[0].y if len(inward) == 1 else torch.cat([one.y for one in inward], 1)
            attended = attend(
                qkv,
                cache.keys[index],
                cache.values[index],
                cos,
                sin,
                start,
                self._attention,
                self._math,
            )
            outward = project(attended, layer.outward, self._math)
            hidden = hidden + outward.y
            ffn = self._ffn(index, self._normed(hidden, layer.ffn_norm))
            hidden = hidden + ffn.y
            counts.append(layer_counts([*inward, outward], ffn))
            yield
        # The last position apart from the others: its bits are those of a call without them.
        norm, head = self._weights.final_norm, self._weights.head
        eps = self._config.rms_norm_eps
        for begin, end in logit_blocks(tokens - 1) if all_logits else ():
            yield linear(rms_norm(hidden[begin:end], norm, eps), head)
        return linear(rms_norm(hidden[-1:], norm, eps), head), torch.stack(counts)

    def _by_weights(self, index: int, x: torch.Tensor) -> FfnOutput:
        return gated_ffn(x, self._weights.layers[index].ffn, math=self._math)

    def _normed(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """What a layer's matrices get."""
        return rms_norm(x, weight, self._config.rms_norm_eps, relu=self._weights.input_relu)


__all__ = ["TorchPass"]
