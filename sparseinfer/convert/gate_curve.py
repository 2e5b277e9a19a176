"""Masks of methods that threshold |a|, a = phi(x W_gate), of each neuron."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sparseinfer.convert.curve import OutputError, Reached, Scores
from sparseinfer.convert.masks import LayerMask


@dataclass(frozen=True)
class GateCurve:
    """Neurons are skipped by their scores |a_i| w_i.

    Attributes:
        scores: of the neurons.
        output_error: CETT by sparsity.
        inputs: projection -> scores of its inputs, of which the same fraction is skipped.
    """

    scores: Scores
    output_error: OutputError
    inputs: Mapping[str, Scores] = field(default_factory=dict)

    def mask(self, sparsity: float) -> LayerMask:
        inputs = {name: scores.threshold(sparsity) for name, scores in self.inputs.items()}
        return LayerMask(gate=self.scores.threshold(sparsity), inputs=inputs)

    def reached(self, sparsity: float) -> Reached:
        inputs = {name: scores.reached(sparsity) for name, scores in self.inputs.items()}
        return Reached(self.scores.reached(sparsity), inputs)
