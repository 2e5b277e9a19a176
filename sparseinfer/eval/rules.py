"""The rules of a model in memory, for passes through single layers."""

from __future__ import annotations

from sparseinfer.engine import Model
from sparseinfer.layerwise import Rules


def rules_of(model: Model) -> Rules:
    """The rules of a model in memory, with the thresholds that it has now."""
    record = model.record
    return Rules(
        phi=model.config.phi,
        psi=model.config.psi,
        shift=record.shift if record else 0.0,
        input_relu=record.input_relu if record else False,
        thresholds=model.thresholds,
        top_k=model.top_k,
        inputs=model.input_thresholds,
        sketch=model.sketch_bits,
    )
