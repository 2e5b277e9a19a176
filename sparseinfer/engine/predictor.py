"""A predictor from disk, refused unless it was made for the model it is given to."""

from __future__ import annotations

from pathlib import Path

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.kernels.matrix import Matrix
from sparseinfer.packed import Packed, Weights
from sparseinfer.predictors.artifact import Predictor, load_predictor


def open_predictor(path: Path | str, source: Checkpoint | Packed) -> Predictor:
    """Reads a predictor's folder; of the model its thresholds and, to know them, its weights.

    Raises:
        PredictorError: no predictor, a damaged one, or one for other weights, thresholds or sizes.
        CheckpointError: broken thresholds of the model.
    """
    return load_predictor(
        path,
        config=source.config,
        ffn_sha256=ffn_sha256(source),
        thresholds=source.thresholds(),
        record=source.record,
    )


def ffn_sha256(source: Checkpoint | Packed) -> str:
    """Of the FFN's weights in a checkpoint, or in the one that an artifact was packed from."""
    return source.ffn_sha256 if isinstance(source, Checkpoint) else source.source.ffn_sha256


def gate_of(weights: Weights, layer: int) -> Matrix:
    """The gate [I, H] of a layer whose neurons can be predicted.

    Raises:
        ValueError: it is stored by input, or in planes.
    """
    gate = weights.layers[layer].ffn.gate
    if not isinstance(gate, Matrix) or weights.layers[layer].ffn.gate_by_input:
        raise ValueError("the model's neurons are not chosen by its gate: there is none to predict")
    return gate
