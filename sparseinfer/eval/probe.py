"""Runs one model again and again with other thresholds, for searches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.config import DTypeName
from sparseinfer.convert.budget import Measurement, Probe
from sparseinfer.engine import Model
from sparseinfer.errors import NumericalError
from sparseinfer.sparsity import sparsities


def open_probe(model: Path, dtype: DTypeName, threads: int | None = None) -> Probe:
    """The dense model in a folder, held in memory, as a function of its thresholds.

    Raises:
        CheckpointError, MemoryError: as `engine.load`.
    """
    weights = "fp32" if dtype == "fp32" else "bf16"
    running = Model(Checkpoint.open(model), weights=weights, threads=threads, prefill="fp32")

    def probe(thresholds: Sequence[Tensor], windows: Tensor) -> Measurement:
        running.set_thresholds(thresholds)
        running.reset_sparsity()
        total = 0.0
        for window in windows:
            total -= float(running.score(window.tolist()).sum())
        counts = running.sparsity("prefill")
        nll = total / (windows.numel() - len(windows))
        if not torch.isfinite(torch.tensor(nll)):
            raise NumericalError("the model computes NaN logits: its weights are broken")
        found = sparsities(running.config, running.formats, counts)
        return Measurement(
            nll=nll,
            bytes_read=found.bytes_per_token_read,
            neuron_sparsity=tuple(counts.neuron_sparsity(running.config)),
        )

    return probe
