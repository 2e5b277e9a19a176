"""Hidden states of the dense and of the converted model, going through the layers side by side.

The converted model has the dense model's attention, and in finished layers the FFNs that were
fitted.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.config import DTypeName
from sparseinfer.errors import CalibrationError
from sparseinfer.finetune.warm_start.ffn import Ffn
from sparseinfer.finetune.warm_start.rows import Rows
from sparseinfer.layerwise import LayerwiseModel, room


class Streams:
    """All tokens, at the layer that `layers` is at.

    Four arrays [W, T, H] in fp32, each in memory or in a file (`layerwise.room`): both streams, and
    input and target of the FFN.
    """

    def __init__(self, parent: Checkpoint, windows: Tensor, *, dtype: DTypeName) -> None:
        """
        Args:
            windows: token ids int64 [W, T].
            dtype: weights are rounded to this type.

        Raises:
            CheckpointError: weights that are broken.
        """
        hidden_act = parent.raw.get("hidden_act", "silu")
        self._model = LayerwiseModel(parent, hidden_act=hidden_act, dtype=dtype)
        self._dense = self._model.embed(windows)
        shape = tuple(self._dense.shape)
        self._converted = room(shape)
        self._converted.copy_(self._dense)
        self._x, self._target = room(shape), room(shape)
        self._weight = torch.empty(shape[:2])
        self._layer = -1

    def layers(self) -> Iterator[int]:
        """Loads one layer after the other; `rows` and `advance` are to be called at each."""
        for layer in self._model.layers():
            self._layer = layer
            yield layer

    @property
    def dense_ffn(self) -> Ffn:
        """The parent's FFN of this layer, its down bias left out: `rows` took it off."""
        mlp = self._model.layer.get_submodule("mlp")
        parts = {name: mlp.get_submodule(f"{name}_proj") for name in ("gate", "up", "down")}
        gate, up, down = (part.get_parameter("weight").detach() for part in parts.values())
        biases = {f"{name}_bias": _bias(parts[name]) for name in ("gate", "up")}
        return Ffn(gate, up, down, **biases, phi="silu", psi="id")

    @torch.no_grad()
    def rows(self, correction: float) -> Rows:
        """Passes both streams through attention, and the dense one through the FFN too.

        The target is the dense FFN's output on the converted stream's input, and by the part
        `correction` what would bring the converted stream to where the dense one is. A token
        counts by the inverse of what its dense stream's mean square is after the layer: the next
        norm divides by that, so that tokens with massive activations weigh no more than others.

        Raises:
            CalibrationError: activations that are not finite.
        """
        bias = _bias(self._model.layer.get_submodule("mlp.down_proj"))
        finite = True
        for window in range(len(self._dense)):
            dense, x = self._model.attend(self._dense[window : window + 1])
            dense = dense[0] + self._model.ffn(x)
            self._dense[window] = dense
            converted, x = self._model.attend(self._converted[window : window + 1])
            target = torch.lerp(self._model.ffn(x), dense - converted[0], correction)
            self._converted[window] = converted[0]
            self._x[window] = x
            self._target[window] = target if bias is None else target - bias
            self._weight[window] = 1 / dense.square().mean(1)
            finite &= bool(torch.isfinite(target).all() and torch.isfinite(dense).all())
        if not finite:
            raise CalibrationError(
                f"layer {self._layer}: activations overflow on the text of the warm start"
            )
        size = self._x.shape[-1]
        return Rows.of(self._x.view(-1, size), self._target.view(-1, size), self._weight.view(-1))

    def advance(self, ffn: Ffn) -> None:
        """Passes the converted stream through its FFN of this layer, down's bias included."""
        bias = _bias(self._model.layer.get_submodule("mlp.down_proj"))
        for stream, x in zip(self._converted, self._x, strict=True):
            stream += ffn.output(x) if bias is None else ffn.output(x) + bias


def _bias(projection: torch.nn.Module) -> Tensor | None:
    bias = getattr(projection, "bias", None)
    return None if bias is None else bias.detach()
