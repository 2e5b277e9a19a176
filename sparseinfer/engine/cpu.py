"""The CPU runner: what a few tokens cost in native code, and many in matrix products.

Up to `NATIVE_ROWS` tokens at once go through the native decode step, which reads no weights of
inactive neurons; longer chunks of one sequence go through `prefill`, matrix products with the same
mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sparseinfer.config import ModelConfig
from sparseinfer.engine.cache import KVCache
from sparseinfer.engine.parts import ForwardParts, finish
from sparseinfer.engine.prefill import Prefill
from sparseinfer.engine.rope import Rope
from sparseinfer.kernels.decoder.cpu import (
    MAX_ROWS,
    AttentionShape,
    CpuDecoder,
    DecoderLayer,
    TokenRow,
)
from sparseinfer.kernels.gemm import Math
from sparseinfer.kernels.threads import CpuPool
from sparseinfer.packed import Weights

NATIVE_ROWS = 8
"""Up to this many tokens of one sequence the native step is faster than matrix products."""


class CpuRunner:
    """Computes logits of new tokens, given the caches of their sequences. Not thread-safe."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        rope: Rope,
        pool: CpuPool,
        kv_dtype: torch.dtype,
        prefill: Math | None = None,
        isa: str | None = None,
    ) -> None:
        """prefill: arithmetic of prompts; None takes what suits the weights and this CPU."""
        self._config = config
        self._rope = rope
        self._kv_dtype = kv_dtype
        self._pool = pool
        self._math: Math | None = prefill
        self._isa = isa
        self.set_weights(weights)

    def set_weights(self, weights: Weights) -> None:
        """Goes on with other weights, of the same shape: caches stay valid."""
        config = self._config
        attention = AttentionShape(
            config.num_heads, config.num_kv_heads, config.head_dim, config.sliding_window
        )
        self._prefill = Prefill(config, weights, self._rope, attention, self._pool, self._math)
        self._decoder = CpuDecoder(
            weights.embedding,
            [
                DecoderLayer(
                    layer.input_norm,
                    layer.qkv,
                    layer.qkv_bias,
                    layer.o,
                    layer.o_bias,
                    layer.ffn_norm,
                    layer.ffn,
                    layer.apart,
                )
                for layer in weights.layers
            ],
            weights.final_norm,
            weights.head,
            eps=config.rms_norm_eps,
            attention=attention,
            kv_dtype=self._kv_dtype,
            input_relu=weights.input_relu,
            pool=self._pool,
            isa=self._isa,
        )

    def thresholds_changed(self) -> None:
        """To be told when values of thresholds were changed in place: these are read where they
        are."""

    def twin(self, weights: Weights) -> CpuRunner:
        """Another runner, on other weights of the same shape: caches fit both, and it shares what
        it can. One of the two may run at a time."""
        return CpuRunner(
            self._config, weights, self._rope, self._pool, self._kv_dtype, self._math, self._isa
        )

    def new_cache(self) -> KVCache:
        return KVCache(self._config, self._kv_dtype)

    def forward(self, ids: torch.Tensor, cache: KVCache) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends tokens to a sequence.

        Args:
            ids: token ids [T], already checked against vocabulary and context.

        Returns:
            logits [1, V] fp32 of the last one, and counts, see `sparseinfer.engine.counts`.
        """
        return finish(self.forward_in_parts(ids, cache))

    def forward_in_parts(
        self, ids: torch.Tensor, cache: KVCache, *, all_logits: bool = False
    ) -> ForwardParts:
        """`forward`, between whose parts other sequences may be computed. The cache is as long as
        before until the last of them; it stays so where the rest is never done.

        Args:
            all_logits: logits of the other positions too, as pieces. The bits of the last ones are
                the same with either.
        """
        tokens = ids.shape[0]
        cache.reserve(tokens)
        if tokens > NATIVE_ROWS:
            logits, rows = yield from self._prefill(ids, cache, all_logits=all_logits)
        else:
            start = cache.length
            new = [
                TokenRow(token, start + offset, cache.keys, cache.values)
                for offset, token in enumerate(ids.tolist())
            ]
            first = 0 if all_logits else tokens - 1
            logits, counts = self._decoder(
                new, *self._rope.tables(0, start + tokens), first_logits=first
            )
            if first < tokens - 1:
                yield logits[:-1]
                logits = logits[-1:]
            rows = counts[:, 0] if tokens == 1 else counts.sum(1, dtype=torch.int64)
        cache.advance(tokens)
        return logits, rows

    def step(
        self, ids: Sequence[int], caches: Sequence[KVCache]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends one token to each of several sequences, reading the weights once for all.

        Args:
            ids: one token id for each cache, at most `MAX_ROWS`; caches are all different.

        Returns:
            logits [B, V] fp32, and counts of each sequence [L, B, ...], see
            `sparseinfer.engine.counts`: to the bit what `forward` gives for each alone.
        """
        return self._step(ids, caches, None)

    def sampled_step(
        self, ids: Sequence[int], caches: Sequence[KVCache]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """A step that also counts what the predictor loses, for which it reads all gates.

        Returns:
            logits and counts of `step`, to the bit, and int32 [L, B]: the neurons that fire by
            their gates on the same inputs, let through or not. The rows of up in `counts` are those
            of them that were let through.

        Raises:
            ValueError: the model has no predictor.
        """
        firing = torch.zeros(self._config.num_layers, len(ids), dtype=torch.int32)
        logits, counts = self._step(ids, caches, firing)
        return logits, counts, firing

    def _step(
        self, ids: Sequence[int], caches: Sequence[KVCache], firing: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows = []
        for token, cache in zip(ids, caches, strict=True):
            cache.reserve(1)
            rows.append(TokenRow(token, cache.length, cache.keys, cache.values))
        longest = max(row.position for row in rows) + 1
        logits, counts = self._decoder(rows, *self._rope.tables(0, longest), firing=firing)
        for cache in caches:
            cache.advance(1)
        return logits, counts


__all__ = ["MAX_ROWS", "NATIVE_ROWS", "CpuRunner"]
