"""CATS: one threshold per layer on |phi(x W_gate)|, its quantile over calibration tokens."""

from sparseinfer.convert.gate_curve import GateCurve
from sparseinfer.convert.method import Method
from sparseinfer.convert.options import MethodOptions
from sparseinfer.convert.statistics import LayerStatistics


def _curve(layer: LayerStatistics, _options: MethodOptions) -> GateCurve:
    scores = layer.gate.scores()
    return GateCurve(scores, layer.ffn_errors(scores))


METHOD = Method(
    name="cats",
    source="CATS (2404.08763)",
    hidden_act=None,
    needs_finetuning=False,
    elsewhere="the dense parent: thresholds are ignored",
    curve=_curve,
    score=lambda _: "|a|",
    needs_sparsity=True,
)
