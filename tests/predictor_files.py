"""Predictors on disk that fit a model, made without training."""

from __future__ import annotations

from pathlib import Path

import torch

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.kernels.lowrank import LowRank
from sparseinfer.kernels.quantize import quantize
from sparseinfer.predictors.artifact import write_files
from sparseinfer.predictors.binding import Binding
from sparseinfer.predictors.metrics import Quality
from sparseinfer.predictors.records import LayerRecord, PredictorRecord, Provenance

RANK = 8


def some_lowrank(checkpoint: Checkpoint) -> list[LowRank]:
    """One per layer, int8, that lets a part of the neurons through."""
    config = checkpoint.config
    random = torch.Generator().manual_seed(3)
    sizes = ((RANK, config.hidden_size), (config.intermediate_size, RANK))
    return [
        LowRank(
            *(quantize(torch.randn(size, generator=random), "int8") for size in sizes),
            torch.ones(config.intermediate_size),
        )
        for _ in range(config.num_layers)
    ]


def write_predictor(model: Path, out: Path, kind: str = "lowrank") -> Path:
    """Writes one for a checkpoint to a new folder; of kind `sign` with alpha 1."""
    checkpoint = Checkpoint.open(model)
    config = checkpoint.config
    quality = Quality(
        tokens=1, recall=1, precision=1, true_sparsity=0, predicted_sparsity=0, output_error=0
    )
    sizes = {"rank": RANK} if kind == "lowrank" else {"most": config.hidden_size // 2}
    thresholds = checkpoint.thresholds()
    record = PredictorRecord(
        kind=kind,
        written_by="test",
        recall=0.9,
        store="int8" if kind == "lowrank" else None,
        seed=0,
        model=Binding.of(config, checkpoint.ffn_sha256, thresholds, checkpoint.record),
        trained_on=Provenance(text="t", text_sha256="0", tokens=1, context=1, seed=0),
        layers=[LayerRecord(bytes_per_token=1, quality=quality, **sizes)] * config.num_layers,
    )
    out.mkdir()
    write_files(out, record, some_lowrank(checkpoint) if kind == "lowrank" else [])
    return out
