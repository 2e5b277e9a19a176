"""Runs a checkpoint through transformers' own layers, holding one layer in memory at a time.

Calibration needs what every layer sees on some thousand tokens, and nothing of a layer once the
next has begun. So all tokens pass layer 0, then all pass layer 1: memory is one fp32 layer plus
the hidden states, however large the model; many hidden states are kept in a file. `run` does just
that; who passes several streams of hidden states puts it together from `embed`, `layers`, `attend`
and `ffn`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from sparseinfer import arch
from sparseinfer.checkpoint import Checkpoint
from sparseinfer.config import TORCH_NAMES, DTypeName
from sparseinfer.errors import CheckpointError

# Where the FFNs are replaced, transformers needs only a name that it knows.
ANY_ACTIVATION = "silu"

IN_MEMORY = 1 << 29
"""Bytes of hidden states that are kept in memory; more go to a temporary file."""


class LayerwiseModel:
    """A transformers model with a single layer whose weights are exchanged."""

    def __init__(self, checkpoint: Checkpoint, *, hidden_act: str, dtype: DTypeName) -> None:
        """
        Args:
            hidden_act: activation to run the FFNs with (a name that transformers knows).
            dtype: weights are rounded to this type first: what is calibrated is what is written.

        Raises:
            CheckpointError: a config that transformers cannot build layers from.
        """
        import transformers

        self._checkpoint = checkpoint
        self._arguments: dict[int, dict[str, Any]] = {}
        self._round_to = getattr(torch, TORCH_NAMES[dtype])
        config: Any = arch.hf_config(
            {**checkpoint.raw, "hidden_act": hidden_act}, str(checkpoint.path)
        )
        config.num_hidden_layers = 1
        config.vocab_size = 1  # embeddings are looked up in the checkpoint
        config.pad_token_id = None
        config.use_cache = False
        try:
            self._model = transformers.AutoModel.from_config(config, dtype=torch.float32).eval()
        except (ArithmeticError, KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(
                f"{checkpoint.path}: transformers refuses this config.json: {reason}"
            ) from error

    @property
    def layer(self) -> nn.Module:
        """The one layer; its weights are those of the layer that `run` or `layers` is at."""
        return self._model.layers[0]

    def run(self, windows: torch.Tensor) -> Iterator[tuple[int, Iterator[None]]]:
        """Passes token windows [W, T] through the model, layer by layer.

        Yields (layer index, passes) per layer. Hooks on `layer` may be set before `passes` is
        exhausted, which computes one window after another; it must be exhausted before the next.
        """
        hidden = self.embed(windows)
        for index in self.layers():
            yield index, self._passes(hidden)

    def embed(self, windows: torch.Tensor) -> torch.Tensor:
        """The hidden states that the first layer reads: fp32 [W, T, H] for token windows [W, T].

        To be called before anything is hooked to the layer.
        """
        (_, table), *_ = self._checkpoint.read([arch.EMBEDDING])
        hidden = room((*windows.shape, table.shape[1]))
        for window, ids in enumerate(windows):
            hidden[window] = table[ids].to(self._round_to)
        self._arguments = {hidden.shape[1]: self._layer_arguments(hidden[:1])}
        return hidden

    def layers(self) -> Iterator[int]:
        """Indices of the model's layers in order; at each, `layer` has the weights of that one."""
        for index in range(self._checkpoint.config.num_layers):
            self._load(index)
            yield index

    @torch.inference_mode()
    def block(self, hidden: torch.Tensor) -> torch.Tensor:
        """What the layer that `layers` is at makes of the hidden states [1, T, H] of a sequence's
        first tokens; same shape."""
        size = hidden.shape[1]
        if size not in self._arguments:
            self._arguments[size] = self._layer_arguments(hidden)
        return self.layer(hidden, **self._arguments[size])

    def attend(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`block` up to its FFN.

        Returns:
            The stream that the FFN's output is added to, [1, T, H], and the FFN's input, [T, H].
        """
        mlp: Any = self.layer.get_submodule("mlp")
        inputs: list[torch.Tensor] = []

        def nothing(x: torch.Tensor) -> torch.Tensor:
            inputs.append(x)
            return torch.zeros_like(x)

        mlp.forward = nothing
        try:
            stream = self.block(hidden)
        finally:
            del mlp.forward
        return stream, inputs[0].view(-1, inputs[0].shape[-1])

    @torch.inference_mode()
    def ffn(self, x: torch.Tensor) -> torch.Tensor:
        """What the FFN of the layer that `layers` is at makes of its inputs [T, H]; same shape."""
        return self.layer.get_submodule("mlp")(x)

    @torch.inference_mode()
    def _passes(self, hidden: torch.Tensor) -> Iterator[None]:
        for window in range(hidden.shape[0]):
            hidden[window] = self.block(hidden[window : window + 1])[0]
            yield

    @torch.inference_mode()
    def _layer_arguments(self, hidden: torch.Tensor) -> dict[str, Any]:
        """What the model passes to its layers (mask, position tables): it depends only on T."""
        captured: dict[str, Any] = {}

        def keep(_module: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            captured.update(kwargs)

        hook = self.layer.register_forward_pre_hook(keep, with_kwargs=True)
        try:
            self._model(inputs_embeds=hidden)
        finally:
            hook.remove()
        return captured

    def _load(self, index: int) -> None:
        self.layer.to("meta")  # the layer before goes first: two would be held otherwise
        prefix = f"model.layers.{index}."
        names = [name for name in self._checkpoint.tensors if name.startswith(prefix)]
        state = {
            name.removeprefix(prefix): tensor.to(self._round_to).float()
            for name, tensor in self._checkpoint.read(names)
        }
        self.layer.load_state_dict(state, strict=True, assign=True)


def room(shape: tuple[int, ...]) -> torch.Tensor:
    """fp32 memory, or a file that goes away with the tensor."""
    if 4 * int(np.prod(shape)) <= IN_MEMORY:
        return torch.empty(shape)
    with tempfile.TemporaryFile(prefix="sparseinfer-") as file:
        return torch.from_numpy(np.memmap(file, dtype=np.float32, mode="w+", shape=shape))
