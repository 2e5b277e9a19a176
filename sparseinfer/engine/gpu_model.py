"""A model's weights on a GPU, and what computes with them: decode steps and prompts."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from functools import reduce

import torch

from sparseinfer.config import ModelConfig
from sparseinfer.engine.gpu_tiles import tile_for
from sparseinfer.engine.residency import Residency
from sparseinfer.engine.rope import Rope
from sparseinfer.engine.split_layers import SplitLayers
from sparseinfer.engine.torch_pass import TorchPass
from sparseinfer.errors import ConfigError, UnsupportedError
from sparseinfer.kernels.decoder.cpu import MAX_ROWS, AttentionShape, DecoderLayer
from sparseinfer.kernels.decoder.gpu import Ffn, GpuDecoder
from sparseinfer.kernels.gated_ffn import FfnOutput, FfnWeights
from sparseinfer.kernels.gated_ffn.gpu_rules import gpu_ffn
from sparseinfer.kernels.gated_ffn.reference import gated_ffn
from sparseinfer.kernels.gated_ffn.split import added
from sparseinfer.kernels.gemm import Math
from sparseinfer.kernels.threads import CpuPool
from sparseinfer.packed import Weights
from sparseinfer.packed.placement import Placement


class GpuModel:
    """A model on a GPU, whole or without its cold neurons.

    Args:
        rope: on the device.
        device: a GPU, or the CPU where Triton's kernels are interpreted.
        kv_dtype: of caches.
        math: of the products of prompts.
        residency: which neurons are on the GPU; None: all.
        pool: threads for the others.
    """

    def __init__(
        self,
        config: ModelConfig,
        rope: Rope,
        device: torch.device,
        kv_dtype: torch.dtype,
        math: Math,
        residency: Residency | None = None,
        pool: CpuPool | None = None,
    ) -> None:
        self._config = config
        self._rope = rope
        self._device = device
        self._kv_dtype = kv_dtype
        self._math: Math = math
        self._residency = residency
        self._pool = pool
        self._placement = Placement(device)
        self._split: SplitLayers | None = None

    def twin(self) -> GpuModel:
        """The same without weights, which are still to be set; it shares copies of matrices.

        Raises:
            UnsupportedError: only some neurons are on the GPU.
        """
        if self._residency is not None:
            raise UnsupportedError(
                "a model of which only some neurons are on the GPU (--gpu-memory) runs by one rule "
                "at a time"
            )
        other = copy(self)
        other._placement = self._placement.twin()
        return other

    def set_weights(self, weights: Weights) -> None:
        """Copies to the device what is not there yet.

        Args:
            weights: on the CPU.

        Raises:
            ConfigError: other weights than before, where neurons were placed for those.
            torch.OutOfMemoryError: the device does not hold them.
        """
        if self._split is not None:
            raise ConfigError(
                "which neurons are on the GPU was chosen for the rules that the model was loaded "
                "with; load it without gpu_memory to change them"
            )
        if self._residency is None:
            placed = self._placement.place(weights)
            self.prefill = TorchPass(self._config, placed, self._rope, self._math)
            tile = tile_for(placed, self._device)
            ffns = [gpu_ffn(layer.ffn, tile) for layer in placed.layers]
            self._decoder = self._made(placed, ffns)
            return
        assert self._pool is not None  # given with a residency
        placed = self._placement.place(weights, leaving=FfnWeights)
        self._split = SplitLayers(
            weights, self._residency, device=self._device, rows=MAX_ROWS, pool=self._pool
        )
        self.prefill = TorchPass(self._config, placed, self._rope, self._math, self._uploaded)
        self._decoder = self._made(placed, self._split.ffns)

    def thresholds_changed(self) -> None:
        """Takes over values of thresholds that were changed in place."""
        self._placement.refresh()
        if self._split is not None:
            self._split.take_thresholds()

    @property
    def decoder(self) -> GpuDecoder:
        return self._decoder

    def _made(self, placed: Weights, ffns: Sequence[Ffn]) -> GpuDecoder:
        config = self._config
        return GpuDecoder(
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
            *self._rope.tables(0, config.context_length),
            eps=config.rms_norm_eps,
            attention=AttentionShape(
                config.num_heads, config.num_kv_heads, config.head_dim, config.sliding_window
            ),
            kv_dtype=self._kv_dtype,
            input_relu=placed.input_relu,
            ffns=ffns,
        )

    def _uploaded(self, index: int, x: torch.Tensor) -> FfnOutput:
        """A layer's FFN for a prompt: many tokens are worth the transfer of its cold neurons."""
        assert self._split is not None  # asked only then
        parts = self._split.parts[index].uploaded()
        return reduce(added, [gated_ffn(x, part, math=self._math) for part in parts])


__all__ = ["GpuModel"]
