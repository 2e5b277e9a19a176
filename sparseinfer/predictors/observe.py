"""Watches the FFNs of a thresholded model while it runs on text: inputs and true masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.checkpoint.layout import Progress, no_progress
from sparseinfer.config import DTypeName, ModelConfig
from sparseinfer.errors import NumericalError
from sparseinfer.layerwise import ANY_ACTIVATION, IN_MEMORY, FfnPass, LayerwiseModel, Rules, masked


@dataclass(frozen=True)
class LayerRows:
    """What the FFN of one layer saw and did on T tokens.

    Attributes:
        x: bf16 [T, H], its inputs.
        masks: uint8 [T, ceil(I / 8)], see `pack_mask`: the neurons that fired.
    """

    x: Tensor
    masks: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: slice | Tensor) -> LayerRows:
        return LayerRows(self.x[rows], self.masks[rows])

    @classmethod
    def empty(cls, tokens: int, config: ModelConfig) -> LayerRows:
        """Memory for so many tokens."""
        width = mask_bytes(config.intermediate_size)
        return cls(
            torch.empty(tokens, config.hidden_size, dtype=torch.bfloat16),
            torch.empty(tokens, width, dtype=torch.uint8),
        )


Sink = Callable[[LayerRows], None]
"""Takes the rows of a layer as they come; they may be kept."""


def mask_bytes(neurons: int) -> int:
    """Bytes of one token's mask."""
    return -(-neurons // 8)


def pack_mask(mask: Tensor) -> Tensor:
    """uint8 [T, ceil(I / 8)] of bool [T, I]: bit i % 8 of byte i // 8 is neuron i."""
    return torch.from_numpy(np.packbits(mask.numpy(), axis=1, bitorder="little"))


def unpack_mask(masks: Tensor, neurons: int) -> Tensor:
    """bool [T, I] of `pack_mask`'s bytes."""
    bits = np.unpackbits(masks.numpy(), axis=1, count=neurons, bitorder="little")
    return torch.from_numpy(bits).view(torch.bool)


def bytes_per_token(config: ModelConfig) -> int:
    """Of `LayerRows`, for one layer."""
    return 2 * config.hidden_size + mask_bytes(config.intermediate_size)


def memory_to_run(config: ModelConfig, tokens: int) -> int:
    """Bytes of memory that `observe` holds: one fp32 layer, and hidden states of all tokens unless
    they are so many that they go to a file."""
    attention = 2 * (config.num_heads + config.num_kv_heads) * config.head_dim * config.hidden_size
    layer = 4 * (config.ffn_weights_per_layer + attention)
    return layer + min(4 * tokens * config.hidden_size, IN_MEMORY)


def hidden_states_file(config: ModelConfig, tokens: int) -> int:
    """Bytes of the temporary file that hidden states go to; 0 where they stay in memory."""
    size = 4 * tokens * config.hidden_size
    return size if size > IN_MEMORY else 0


def observe(
    checkpoint: Checkpoint,
    rules: Rules,
    windows: Tensor,
    sink_of: Callable[[int], Sink | None],
    layer_done: Callable[[int], None],
    *,
    dtype: DTypeName,
    progress: Progress = no_progress,
) -> None:
    """Runs windows of token ids [W, T] through the model, masks applied, in fp32 arithmetic.

    Args:
        sink_of: layer -> what takes its rows, asked before they come; None: nobody wants them.
        layer_done: called with a layer when all its rows have come.
        dtype: weights are rounded to this type first.

    Raises:
        NumericalError: inputs that are not finite, or beyond what bf16 holds.
    """
    model = LayerwiseModel(checkpoint, hidden_act=ANY_ACTIVATION, dtype=dtype)
    for index, passes in model.run(windows):
        watch = _Watch(index, sink_of(index))
        with masked(model.layer, index, rules, watch):
            for done, _ in enumerate(passes, start=1):
                progress("running the model, windows of a layer", done, len(windows))
        layer_done(index)


class _Watch:
    """Passes on what a layer's FFN does."""

    def __init__(self, layer: int, sink: Sink | None) -> None:
        self._layer = layer
        self._sink = sink

    def __call__(self, ffn: FfnPass) -> None:
        if self._sink is None:
            return
        x = ffn.x.bfloat16()
        if not bool(torch.isfinite(x).all()):
            raise NumericalError(f"layer {self._layer}: the inputs of its FFN are not finite")
        self._sink(LayerRows(x, pack_mask(ffn.active)))
