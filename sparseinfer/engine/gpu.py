"""The GPU runner: decode steps in CUDA graphs, prompts in matrix products with the same mask."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from sparseinfer.config import ModelConfig
from sparseinfer.engine.cache import KVCache
from sparseinfer.engine.device import check_room, gpu_memory
from sparseinfer.engine.gpu_step import GpuStep
from sparseinfer.engine.rope import Rope
from sparseinfer.engine.torch_pass import TorchPass
from sparseinfer.kernels.decoder.cpu import AttentionShape, DecoderLayer
from sparseinfer.kernels.decoder.gpu import GpuDecoder
from sparseinfer.kernels.gemm import Math
from sparseinfer.packed import Weights
from sparseinfer.packed.placement import Placement, nbytes_of

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
    ) -> None:
        self._config = config
        self._device = device
        self._kv_dtype = kv_dtype
        self._math: Math = prefill or ("fp32" if weights.format == "fp32" else "bf16")
        self._rope = rope.on(device)
        self._attention = AttentionShape(
            config.num_heads, config.num_kv_heads, config.head_dim, config.sliding_window
        )
        self._placement = Placement(device)
        check_room(device, nbytes_of(weights), self._cache_bytes())
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        with torch.inference_mode():
            self._scratch = KVCache(config, kv_dtype, device, positions=1)
            self._scratch.keys.zero_()
            self._scratch.values.zero_()
        self.set_weights(weights)

    def set_weights(self, weights: Weights) -> None:
        """Goes on with other weights, of the same shape: caches stay valid."""
        self._steps: dict[int, GpuStep] = {}  # graphs hold what they read
        with torch.inference_mode(), gpu_memory(self._device, "the model"):
            placed = self._placement.place(weights)
            self._prefill = TorchPass(self._config, placed, self._rope, self._math)
            self._decoder = GpuDecoder(
                placed.embedding,
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
                    for layer in placed.layers
                ],
                placed.final_norm,
                placed.head,
                *self._rope.tables(0, self._config.context_length),
                eps=self._config.rms_norm_eps,
                attention=self._attention,
                kv_dtype=self._kv_dtype,
                input_relu=placed.input_relu,
            )

    def thresholds_changed(self) -> None:
        """To be told when values of thresholds were changed in place: they are copied again."""
        with torch.inference_mode():
            self._placement.refresh()

    def new_cache(self) -> KVCache:
        with torch.inference_mode(), gpu_memory(self._device, "another sequence"):
            return KVCache(self._config, self._kv_dtype, self._device)

    def forward(
        self, ids: torch.Tensor, cache: KVCache, *, all_logits: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `sparseinfer.engine.cpu.CpuRunner.forward`."""
        tokens = ids.shape[0]
        if tokens == 1:
            logits, counts = self.step([int(ids[0])], [cache])
            return logits, counts[:, 0].long()
        with self._room(tokens, [cache]):
            logits, counts = self._prefill(ids.to(self._device), cache, all_logits=all_logits)
            logits, counts = logits.cpu(), counts.cpu()
        cache.advance(tokens)
        return logits, counts

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

    def _bucket(self, rows: int) -> GpuStep:
        size = next(size for size in BUCKETS if size >= rows)
        if size not in self._steps:
            self._steps[size] = GpuStep(
                self._decoder, size, self._scratch, self._device, self._pool
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

    def _cache_bytes(self) -> int:
        """Of one sequence that fills the context."""
        config = self._config
        values = config.num_layers * config.num_kv_heads * config.head_dim * config.context_length
        return 2 * values * self._kv_dtype.itemsize


@functools.cache
def _say_turns(rows: int) -> None:
    logger.warning(
        "%d sequences are decoded in turns of %d, the largest batch there is a graph for",
        rows,
        BUCKETS[-1],
    )


__all__ = ["BUCKETS", "GpuRunner"]
