"""From what was seen of one layer to its sign predictor, which needs a single number."""

from __future__ import annotations

from sparseinfer.kernels.matrix import Matrix
from sparseinfer.kernels.sign import SignBits, bytes_per_row, pack_signs
from sparseinfer.kernels.sign import reference as sign_reference
from sparseinfer.predictors.ffn import LayerFfn
from sparseinfer.predictors.held_out import measure, split
from sparseinfer.predictors.observe import LayerRows, unpack_mask
from sparseinfer.predictors.records import LayerRecord
from sparseinfer.predictors.threshold import most_negatives


def calibrate_layer(rows: LayerRows, ffn: LayerFfn, recall: float) -> LayerRecord:
    """The number of products of negative sign that reaches a recall. Half of the rows choose it,
    the other half measure what it does."""
    neurons, hidden = ffn.gate.shape
    parts = split(rows, neurons, training=False)
    signs = pack_signs(Matrix.of(ffn.gate))
    negatives = sign_reference.negatives(parts.calibrate.x.float(), SignBits(signs, hidden, hidden))
    active = unpack_mask(parts.calibrate.masks, neurons)
    most = most_negatives(negatives, active, recall, hidden)
    predictor = SignBits(signs, hidden, most)
    return LayerRecord(
        bytes_per_token=neurons * bytes_per_row(hidden),
        most=most,
        alpha=_alpha(most, hidden),
        quality=measure(parts.measure, ffn, lambda x: sign_reference.candidates(x, predictor)),
    )


def _alpha(most: int, hidden: int) -> float | None:
    """SparseInfer's alpha in the middle of those that give `most`."""
    return (most + 0.5) / (hidden - most - 0.5) if 0 <= most < hidden else None
