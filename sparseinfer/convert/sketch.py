"""Sketch: low-bit copies of gate and up estimate what each neuron would put out.

Neurons are skipped by |phi(g^_i) psi(u^_i)| norm(W_down[:, i]), where g^ and u^ are what the
copies make of the gate and up values; the threshold is the layer's quantile of that, over the norm.
The estimate is the rule, so nothing of a skipped neuron is read but its copy. Ours.
"""

from __future__ import annotations

from dataclasses import dataclass

from sparseinfer.convert.curve import OutputError, Reached, Scores
from sparseinfer.convert.masks import LayerMask
from sparseinfer.convert.method import Method
from sparseinfer.convert.options import MethodOptions
from sparseinfer.convert.statistics import LayerStatistics

DEFAULT_BITS = 4


@dataclass(frozen=True)
class SketchCurve:
    """Neurons are skipped by the estimated norm of their output.

    Attributes:
        scores: estimates times norm(W_down[:, i]).
        output_error: CETT by sparsity.
    """

    bits: int
    scores: Scores
    output_error: OutputError

    def mask(self, sparsity: float) -> LayerMask:
        return LayerMask(gate=self.scores.threshold(sparsity), sketch=self.bits)

    def reached(self, sparsity: float) -> Reached:
        return Reached(self.scores.missed(sparsity))


def _bits(options: MethodOptions) -> int:
    return options.sketch_bits or DEFAULT_BITS


def _curve(layer: LayerStatistics, options: MethodOptions) -> SketchCurve:
    estimates = layer.estimates[_bits(options)]
    scores = estimates.signal.scores(layer.column_norm("down"))
    return SketchCurve(_bits(options), scores, layer.sketch_errors(estimates, scores))


METHOD = Method(
    name="sketch",
    source="sparseinfer",
    hidden_act=None,
    needs_finetuning=False,
    elsewhere="the dense parent: thresholds are ignored",
    curve=_curve,
    score=lambda options: f"|h| norm(W_down[:, i]), h estimated in {_bits(options)} bits",
    needs_sparsity=True,
    options=frozenset({"sketch_bits"}),
    sketch_bits=_bits,
)
