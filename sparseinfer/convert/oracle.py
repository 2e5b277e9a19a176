"""The oracle: the neurons whose outputs are largest, |h_i| norm(W_down[:, i]), known in advance.

No engine can run it, as h is what choosing neurons should save: a bound on every gate-first rule.
Its mask is one on the inputs of down.
"""

from __future__ import annotations

from dataclasses import dataclass

from sparseinfer.convert.curve import OutputError, Reached, Scores
from sparseinfer.convert.masks import LayerMask
from sparseinfer.convert.statistics import LayerStatistics


@dataclass(frozen=True)
class OracleCurve:
    """Neurons are skipped by the norm of their output.

    Attributes:
        scores: |h_i| norm(W_down[:, i]).
    """

    scores: Scores
    output_error: OutputError

    def mask(self, sparsity: float) -> LayerMask:
        return LayerMask(inputs={"down": self.scores.threshold(sparsity)})

    def reached(self, sparsity: float) -> Reached:
        return Reached(self.scores.reached(sparsity))


def oracle_curve(layer: LayerStatistics) -> OracleCurve:
    """The bound for one layer."""
    scores = layer.inputs["down"].scores(layer.column_norm("down"))
    return OracleCurve(scores, layer.output_errors(scores))
