"""What computes a model on this machine: a GPU, native kernels, or plain torch without them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from typing import Protocol

import torch

from sparseinfer.config import ModelConfig
from sparseinfer.engine.cache import KVCache
from sparseinfer.engine.cpu import CpuRunner
from sparseinfer.engine.device import CPU
from sparseinfer.engine.parts import ForwardParts
from sparseinfer.engine.reference import ReferenceRunner
from sparseinfer.engine.residency import Residency
from sparseinfer.engine.rope import Rope
from sparseinfer.kernels.gemm import Math
from sparseinfer.kernels.isa import NativeKernelsError, native_missing
from sparseinfer.kernels.threads import CpuPool
from sparseinfer.packed import Weights

logger = logging.getLogger("sparseinfer")


class Runner(Protocol):
    """Computes logits of new tokens, given the caches of their sequences (see `CpuRunner`)."""

    def set_weights(self, weights: Weights) -> None: ...

    def thresholds_changed(self) -> None: ...

    def twin(self, weights: Weights) -> Runner: ...

    def new_cache(self) -> KVCache: ...

    def forward(self, ids: torch.Tensor, cache: KVCache) -> tuple[torch.Tensor, torch.Tensor]: ...

    def forward_in_parts(
        self, ids: torch.Tensor, cache: KVCache, *, all_logits: bool = False
    ) -> ForwardParts: ...

    def step(
        self, ids: Sequence[int], caches: Sequence[KVCache]
    ) -> tuple[torch.Tensor, torch.Tensor]: ...

    def sampled_step(
        self, ids: Sequence[int], caches: Sequence[KVCache]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]: ...


def make_runner(
    config: ModelConfig,
    weights: Weights,
    rope: Rope,
    threads: int,
    kv_dtype: torch.dtype,
    prefill: Math | None = None,
    device: torch.device = CPU,
    residency: Residency | None = None,
) -> Runner:
    """The fastest runner that works here. Says once per process if that is plain torch, and why.

    Args:
        device: `CPU`, or what `engine.device.gpu` returns.
        residency: which neurons are on a GPU; None: all.
        threads: of the native kernels, or of torch.
        kv_dtype: of the caches, torch.float32 or torch.bfloat16.
        prefill: arithmetic of prompts; None takes what suits. Plain torch has fp32 only.

    Raises:
        NativeKernelsError: bf16 prefill, or neurons that are not on the GPU, where there are no
            native kernels.
        DeviceMemoryError: a GPU that does not hold the model.
    """
    reason = native_missing()
    if device is not CPU:
        from sparseinfer.engine.gpu import GpuRunner  # Triton is slow to import, and optional

        if residency is not None and reason is not None:
            raise NativeKernelsError(
                f"neurons that are not on the GPU run on native kernels only: {reason}"
            )
        pool = None if residency is None else CpuPool(threads)
        return GpuRunner(config, weights, rope, device, kv_dtype, prefill, residency, pool)
    if reason is None:
        return CpuRunner(config, weights, rope, CpuPool(threads), kv_dtype, prefill)
    if prefill == "bf16":
        raise NativeKernelsError(f"bf16 prefill runs on native kernels only: {reason}")
    _say_slow(reason)
    return ReferenceRunner(config, weights, rope, threads, kv_dtype)


@cache
def _say_slow(reason: str) -> None:
    logger.warning("running on plain torch, many times slower than native kernels: %s", reason)


__all__ = ["Runner", "make_runner"]
