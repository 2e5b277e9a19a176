"""The runner where there are no native kernels: the plain-torch references, in fp32.

Right and slow: every weight is widened to fp32 each time it is used, and no neuron is skipped. The
counts say what the native kernels would have read. Results may differ in rounding with the number
of threads, which those of the native kernels do not.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sparseinfer.config import ModelConfig
from sparseinfer.engine.cache import KVCache
from sparseinfer.engine.counts import layer_counts
from sparseinfer.engine.parts import ForwardParts
from sparseinfer.engine.prefill import embed, rms_norm
from sparseinfer.engine.rope import Rope
from sparseinfer.engine.torch_threads import torch_threads
from sparseinfer.kernels.attention.reference import attend
from sparseinfer.kernels.decoder.cpu import AttentionShape
from sparseinfer.kernels.gated_ffn.reference import gated_ffn
from sparseinfer.kernels.linear.reference import linear
from sparseinfer.kernels.projection.reference import project
from sparseinfer.packed import Weights


class ReferenceRunner:
    """Computes logits of new tokens, given the caches of their sequences. Not thread-safe.

    Args:
        threads: of torch.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        rope: Rope,
        threads: int,
        kv_dtype: torch.dtype,
    ) -> None:
        self._config = config
        self._weights = weights
        self._rope = rope
        self._threads = threads
        self._kv_dtype = kv_dtype
        self._attention = AttentionShape(
            config.num_heads, config.num_kv_heads, config.head_dim, config.sliding_window
        )

    def set_weights(self, weights: Weights) -> None:
        """As `sparseinfer.engine.cpu.CpuRunner.set_weights`."""
        self._weights = weights

    def twin(self, weights: Weights) -> ReferenceRunner:
        """As `sparseinfer.engine.cpu.CpuRunner.twin`."""
        return ReferenceRunner(self._config, weights, self._rope, self._threads, self._kv_dtype)

    def new_cache(self) -> KVCache:
        return KVCache(self._config, self._kv_dtype)

    def forward(
        self, ids: torch.Tensor, cache: KVCache, *, all_logits: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `sparseinfer.engine.cpu.CpuRunner.forward`."""
        # Callers keep torch to one thread while decoding, which only native kernels want.
        with torch_threads(self._threads):
            return self._forward(ids, cache, all_logits)

    def forward_in_parts(
        self, ids: torch.Tensor, cache: KVCache, *, all_logits: bool
    ) -> ForwardParts:
        """As `sparseinfer.engine.cpu.CpuRunner.forward_in_parts`, in a single part."""
        yield from ()
        return self.forward(ids, cache, all_logits=all_logits)

    def step(
        self, ids: Sequence[int], caches: Sequence[KVCache]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `sparseinfer.engine.cpu.CpuRunner.step`, one sequence after the other."""
        logits, counts = [], []
        for token, cache in zip(ids, caches, strict=True):
            one, rows = self.forward(torch.tensor([token]), cache, all_logits=False)
            logits.append(one)
            counts.append(rows.int())
        return torch.cat(logits), torch.stack(counts, 1)

    def _forward(
        self, ids: torch.Tensor, cache: KVCache, all_logits: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        eps = self._config.rms_norm_eps
        tokens, start = ids.shape[0], cache.length
        cache.reserve(tokens)
        hidden = embed(self._weights.embedding, ids)
        cos, sin = self._rope.tables(start, start + tokens)
        counts = []
        for index, layer in enumerate(self._weights.layers):
            x = self._normed(hidden, layer.input_norm)
            inward = [project(x, one) for one in layer.inward]
            qkv = inward[0].y if len(inward) == 1 else torch.cat([one.y for one in inward], 1)
            keys, values = cache.keys[index], cache.values[index]
            attended = attend(qkv, keys, values, cos, sin, start, self._attention)
            outward = project(attended, layer.outward)
            hidden = hidden + outward.y
            ffn = gated_ffn(self._normed(hidden, layer.ffn_norm), layer.ffn)
            hidden = hidden + ffn.y
            counts.append(layer_counts([*inward, outward], ffn))
        cache.advance(tokens)
        # The last position apart from the others: its bits are those of a call without them.
        rows = (hidden[:-1], hidden[-1:]) if all_logits else (hidden[-1:],)
        norm, head = self._weights.final_norm, self._weights.head
        logits = torch.cat([linear(rms_norm(row, norm, eps), head) for row in rows])
        return logits, torch.stack(counts)

    def _normed(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """What a layer's matrices get."""
        x = rms_norm(x, weight, self._config.rms_norm_eps)
        return x.relu() if self._weights.input_relu else x


__all__ = ["ReferenceRunner"]
