"""One decoder layer on some tokens, with thresholds on the inputs of its projections."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from sparseinfer.layerwise import MODULES, InputMask, LayerwiseModel

TOKENS = 128
"""From the start of the first window."""


class Block:
    """The layer that a layerwise model is at, and what it is given for the first tokens."""

    def __init__(self, model: LayerwiseModel) -> None:
        self._model = model
        self._hidden: Tensor | None = None
        self._dense: Tensor | None = None

    def keep_input(
        self, _module: nn.Module, inputs: tuple[Tensor, ...], _kwargs: dict[str, Any]
    ) -> None:
        """Forward pre-hook on the layer: remembers what comes first."""
        if self._hidden is None:
            self._hidden = inputs[0][:1, :TOKENS].clone()

    def error(self, thresholds: Mapping[str, Tensor]) -> float:
        """norm(change of the layer's output) / norm(what the dense layer adds to the residual
        stream), the mean over tokens.

        Args:
            thresholds: projection -> fp32 [inputs] on |x|.
        """
        assert self._hidden is not None, "run the layer first"
        if self._dense is None:
            self._dense = self._model.block(self._hidden)
        with self._masked(thresholds):
            sparse = self._model.block(self._hidden)
        added = (self._dense - self._hidden).norm(dim=-1).clamp_min(1e-20)
        return float(((sparse - self._dense).norm(dim=-1) / added).mean())

    @contextmanager
    def _masked(self, thresholds: Mapping[str, Tensor]) -> Iterator[None]:
        layer = self._model.layer
        hooks = [
            layer.get_submodule(MODULES[name]).register_forward_pre_hook(InputMask(threshold))
            for name, threshold in thresholds.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
