"""The runner where there are no native kernels: the plain-torch references, in fp32.

Right and slow: every weight is widened to fp32 each time it is used, and no neuron is skipped. The
counts say what the native kernels would have read. Results may differ in rounding with the number
of threads, which those of the native kernels do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

from sparseinfer.config import ModelConfig
from sparseinfer.engine.cache import KVCache
from sparseinfer.engine.parts import ForwardParts, finish, within
from sparseinfer.engine.rope import Rope
from sparseinfer.engine.torch_pass import TorchPass
from sparseinfer.engine.torch_threads import torch_threads
from sparseinfer.kernels.gated_ffn import FfnOutput
from sparseinfer.kernels.gated_ffn.reference import gated_ffn
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
        self._rope = rope
        self._threads = threads
        self._kv_dtype = kv_dtype
        self.set_weights(weights)

    def set_weights(self, weights: Weights) -> None:
        """As `sparseinfer.engine.cpu.CpuRunner.set_weights`."""
        self._weights = weights
        self._pass = TorchPass(self._config, weights, self._rope)

    def thresholds_changed(self) -> None:
        """As `sparseinfer.engine.cpu.CpuRunner.thresholds_changed`."""

    def twin(self, weights: Weights) -> ReferenceRunner:
        """As `sparseinfer.engine.cpu.CpuRunner.twin`."""
        return ReferenceRunner(self._config, weights, self._rope, self._threads, self._kv_dtype)

    def new_cache(self) -> KVCache:
        return KVCache(self._config, self._kv_dtype)

    def forward(self, ids: torch.Tensor, cache: KVCache) -> tuple[torch.Tensor, torch.Tensor]:
        """As `sparseinfer.engine.cpu.CpuRunner.forward`."""
        return finish(self.forward_in_parts(ids, cache))

    def forward_in_parts(
        self, ids: torch.Tensor, cache: KVCache, *, all_logits: bool = False
    ) -> ForwardParts:
        """As `sparseinfer.engine.cpu.CpuRunner.forward_in_parts`."""
        return (yield from self._in_parts(self._pass, ids, cache, all_logits=all_logits))

    def _in_parts(
        self, torch_pass: TorchPass, ids: torch.Tensor, cache: KVCache, *, all_logits: bool
    ) -> ForwardParts:
        tokens = ids.shape[0]
        cache.reserve(tokens)
        # Callers keep torch to one thread while decoding, which only native kernels want.
        result = yield from within(
            torch_pass(ids, cache, all_logits=all_logits), partial(torch_threads, self._threads)
        )
        cache.advance(tokens)
        return result

    def step(
        self, ids: Sequence[int], caches: Sequence[KVCache]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `sparseinfer.engine.cpu.CpuRunner.step`, one sequence after the other."""
        return self._step(ids, caches, self._pass)

    def sampled_step(
        self, ids: Sequence[int], caches: Sequence[KVCache]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As `sparseinfer.engine.cpu.CpuRunner.sampled_step`."""
        layers = [layer.ffn for layer in self._weights.layers]
        if any(one.predictor is None for one in layers):
            raise ValueError("firing is counted where every layer has a predictor")
        everything = [replace(one, predictor=None) for one in layers]
        firing: list[torch.Tensor] = []

        def ffn(index: int, x: torch.Tensor) -> FfnOutput:
            firing.append(gated_ffn(x, everything[index]).counts[0, 0])
            return gated_ffn(x, layers[index])

        sampling = TorchPass(self._config, self._weights, self._rope, ffn=ffn)
        logits, counts = self._step(ids, caches, sampling)
        by_sequence = torch.stack(firing).reshape(len(ids), len(layers))
        return logits, counts, by_sequence.T.int()

    def _step(
        self, ids: Sequence[int], caches: Sequence[KVCache], torch_pass: TorchPass
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logits, counts = [], []
        for token, cache in zip(ids, caches, strict=True):
            parts = self._in_parts(torch_pass, torch.tensor([token]), cache, all_logits=False)
            one, rows = finish(parts)
            logits.append(one)
            counts.append(rows.int())
        return torch.cat(logits), torch.stack(counts, 1)


__all__ = ["ReferenceRunner"]
