"""Runs one model again and again with other masks, for searches."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.config import DTypeName
from sparseinfer.convert.budget import Measurement
from sparseinfer.convert.masks import Masks
from sparseinfer.engine import Model
from sparseinfer.errors import NumericalError
from sparseinfer.sparsity import sparsities


class ModelProbe:
    """The dense model in a folder, held in memory, under changing masks.

    Raises:
        CheckpointError, MemoryError: as `engine.load`.
    """

    def __init__(self, model: Path, dtype: DTypeName, threads: int | None = None) -> None:
        weights = "fp32" if dtype == "fp32" else "bf16"
        self._model = Model(
            Checkpoint.open(model), weights=weights, threads=threads, prefill="fp32"
        )
        self._dense: tuple[Tensor, list[Tensor]] | None = None

    def measure(self, masks: Masks, windows: Tensor) -> Measurement:
        """How well windows of token ids [W, T] are predicted, and what is read for that.

        Raises:
            NumericalError: the model computes NaN.
        """
        model = self._model
        use_masks(model, masks)
        model.reset_sparsity()
        total = sum(-float(model.score(window.tolist()).sum()) for window in windows)
        nll = total / (windows.numel() - len(windows))
        if not math.isfinite(nll):
            raise NumericalError("the model computes NaN logits: its weights are broken")
        found = sparsities(model.config, model.formats, model.sparsity("prefill"))
        return Measurement(nll, found.bytes_per_token_read, found.model_bytes)

    def kl(self, masks: Masks, windows: Tensor) -> float:
        """Mean KL(dense || masked) per token of windows [W, T], in nats. What the dense model says
        of them is kept for the next call."""
        if self._dense is None or not torch.equal(self._dense[0], windows):
            self._dense = windows, self._log_probabilities(Masks(), windows)
        found = 0.0
        pairs = zip(self._dense[1], self._log_probabilities(masks, windows), strict=True)
        for dense, masked in pairs:
            found += float((dense.exp() * (dense - masked)).sum(dtype=torch.float64))
        return found / windows.numel()

    def _log_probabilities(self, masks: Masks, windows: Tensor) -> list[Tensor]:
        use_masks(self._model, masks)
        return [self._model.logits(window.tolist()).log_softmax(-1) for window in windows]


def use_masks(model: Model, masks: Masks) -> None:
    """Makes a model in memory take as 0 what masks say, and nothing else.

    Raises:
        ConfigError: weights that cannot be sketched as masks ask for.
    """
    config = model.config
    if masks.sketch is None:
        model.set_sketch(None)
    nothing = torch.zeros(config.intermediate_size)
    model.set_thresholds(masks.gate or [nothing] * config.num_layers)
    model.set_input_thresholds(masks.inputs)
    model.set_top_k(masks.top_k)
    if masks.sketch is not None:
        model.set_sketch(masks.sketch)
