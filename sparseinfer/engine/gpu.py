"""The GPU runner: decode steps in CUDA graphs, prompts in matrix products with the same mask."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy

import torch

from sparseinfer.config import ModelConfig
from sparseinfer.engine.cache import KVCache
from sparseinfer.engine.device import check_room, gpu_memory
from sparseinfer.engine.gpu_model import GpuModel
from sparseinfer.engine.gpu_step import GpuStep
from sparseinfer.engine.parts import ForwardParts, finish, within
from sparseinfer.engine.placing import reserved_bytes
from sparseinfer.engine.residency import Residency
from sparseinfer.engine.rope import Rope
from sparseinfer.engine.settings import SAMPLED_ON_CPU
from sparseinfer.errors import UnsupportedError
from sparseinfer.kernels.gemm import Math
from sparseinfer.kernels.threads import CpuPool
from sparseinfer.packed import Weights
from sparseinfer.packed.placement import nbytes_of

logger = logging.getLogger("sparseinfer")

BUCKETS = (1, 2, 4, 8, 16)
"""Rows that a graph is captured for; a batch takes the smallest that holds it."""


class GpuRunner:
    """Computes logits of new tokens, given the caches of their sequences. Not thread-safe.

    Args:
        weights: on the CPU, from where they are copied to the device.
        device: a GPU, or the CPU where Triton's kernels are interpreted.
        kv_dtype: of the caches, torch.float32 or torch.bfloat16.
        prefill: arithmetic of prompts; None: bf16 unless the weights are fp32.
        residency: which neurons are on the GPU; None: all.
        pool: threads for the others.

    Logits and counts come back to the CPU. The bits of a row's result do not depend on the run;
    its last bits may depend on the other rows of the batch (see `kernels.gated_ffn.gpu`).

    Raises:
        DeviceMemoryError: the model does not fit the GPU.
        UnsupportedError: a GPU that is too old, or no Triton.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        rope: Rope,
        device: torch.device,
        kv_dtype: torch.dtype,
        prefill: Math | None = None,
        residency: Residency | None = None,
        pool: CpuPool | None = None,
    ) -> None:
        self._config = config
        self._device = device
        self._kv_dtype = kv_dtype
        math: Math = prefill or ("fp32" if weights.format == "fp32" else "bf16")
        self._model = GpuModel(config, rope.on(device), device, kv_dtype, math, residency, pool)
        needed = nbytes_of(weights) if residency is None else residency.gpu_bytes
        check_room(device, needed, reserved_bytes(config, kv_dtype))
        self._start(weights)

    def _start(self, weights: Weights) -> None:
        config, kv_dtype, device = self._config, self._kv_dtype, self._device
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        with torch.inference_mode():
            self._scratch = KVCache(config, kv_dtype, device, positions=1)
            self._scratch.keys.zero_()
            self._scratch.values.zero_()
        self.set_weights(weights)

    def set_weights(self, weights: Weights) -> None:
        """Goes on with other weights, of the same shape: caches stay valid.

        Raises:
            ConfigError: only some neurons are on the GPU, chosen for the weights before.
        """
        with torch.inference_mode(), gpu_memory(self._device, "the model"):
            self._model.set_weights(weights)
        self._steps: dict[int, GpuStep] = {}  # graphs hold what they read

    def thresholds_changed(self) -> None:
        """To be told when values of thresholds were changed in place: they are copied again."""
        with torch.inference_mode():
            self._model.thresholds_changed()

    def twin(self, weights: Weights) -> GpuRunner:
        """As `sparseinfer.engine.cpu.CpuRunner.twin`: it copies to the GPU what is not there.

        Raises:
            UnsupportedError: only some neurons are on the GPU, chosen for the weights there are.
        """
        other = copy(self)
        other._model = self._model.twin()
        other._start(weights)
        return other

    def new_cache(self) -> KVCache:
        with torch.inference_mode(), gpu_memory(self._device, "another sequence"):
            return KVCache(self._config, self._kv_dtype, self._device)

    def forward(self, ids: torch.Tensor, cache: KVCache) -> tuple[torch.Tensor, torch.Tensor]:
        """As `sparseinfer.engine.cpu.CpuRunner.forward`."""
        return finish(self.forward_in_parts(ids, cache))

    def forward_in_parts(
        self, ids: torch.Tensor, cache: KVCache, *, all_logits: bool = False
    ) -> ForwardParts:
        """As `sparseinfer.engine.cpu.CpuRunner.forward_in_parts`."""
        tokens = ids.shape[0]
        if tokens == 1:
            logits, counts = self.step([int(ids[0])], [cache])
            return logits, counts[:, 0].long()
        result = yield from within(
            self._prompt(ids, cache, all_logits=all_logits),
            functools.partial(self._room, tokens, [cache]),
        )
        cache.advance(tokens)
        return result

    def step(
        self, ids: Sequence[int], caches: Sequence[KVCache]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `sparseinfer.engine.cpu.CpuRunner.step`, of any number of sequences: more than the
        largest of `BUCKETS` go through it in turns, which is said once."""
        most = BUCKETS[-1]
        if len(ids) > most:
            _say_turns(len(ids))
            parts = [
                self.step(ids[begin : begin + most], caches[begin : begin + most])
                for begin in range(0, len(ids), most)
            ]
            return torch.cat([one for one, _ in parts]), torch.cat([one for _, one in parts], 1)
        with self._room(1, caches):
            logits, counts = self._bucket(len(ids))(ids, caches)
        for cache in caches:
            cache.advance(1)
        return logits, counts

    def sampled_step(
        self,
        ids: Sequence[int],  # noqa: ARG002
        caches: Sequence[KVCache],  # noqa: ARG002
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError(SAMPLED_ON_CPU)

    def _prompt(self, ids: torch.Tensor, cache: KVCache, *, all_logits: bool) -> ForwardParts:
        """On the GPU, its results copied from there."""
        parts = self._model.prefill(ids.to(self._device), cache, all_logits=all_logits)
        while True:
            try:
                piece = next(parts)
            except StopIteration as done:
                logits, counts = done.value
                return logits.cpu(), counts.cpu()
            yield None if piece is None else piece.cpu()

    def _bucket(self, rows: int) -> GpuStep:
        size = next(size for size in BUCKETS if size >= rows)
        if size not in self._steps:
            self._steps[size] = GpuStep(
                self._model.decoder.steps, size, self._scratch, self._device, self._pool
            )
        return self._steps[size]

    @contextmanager
    def _room(self, tokens: int, caches: Sequence[KVCache]) -> Iterator[None]:
        longest = max(cache.length for cache in caches) + tokens
        with (
            torch.inference_mode(),
            gpu_memory(self._device, f"a sequence of {longest} tokens"),
        ):
            for cache in caches:
                cache.reserve(tokens)
            yield


@functools.cache
def _say_turns(rows: int) -> None:
    logger.warning(
        "%d sequences are decoded in turns of %d, the largest batch there is a graph for",
        rows,
        BUCKETS[-1],
    )


__all__ = ["BUCKETS", "GpuRunner"]
