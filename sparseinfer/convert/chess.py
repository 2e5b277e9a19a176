"""CHESS: channel-wise thresholds. A gate value counts as much as its up value is large on average.

Two published scores: `l1`, |a_i| E|u_i|, and `l2`, a_i^2 E[u_i^2] (here its square root, which
orders neurons the same). Selective sparsification (its section 3.3) also takes inputs of q and o
below one threshold per projection as 0; those of k and v, which the cache keeps, stay whole.
"""

from sparseinfer.convert.gate_curve import GateCurve
from sparseinfer.convert.method import Method
from sparseinfer.convert.options import MethodOptions
from sparseinfer.convert.statistics import INPUT_OF, LayerStatistics

ATTENTION = ("q", "o")


def _curve(layer: LayerStatistics, options: MethodOptions) -> GateCurve:
    weight = layer.up_root_mean_square if options.chess_score == "l2" else layer.up_mean_abs
    scores = layer.gate.scores(weight)
    projections = ATTENTION if options.attention else ()
    inputs = {name: layer.inputs[INPUT_OF[name]].scores() for name in projections}
    return GateCurve(scores, layer.ffn_errors(scores), inputs)


def _score(options: MethodOptions) -> str:
    form = options.chess_score or "l1"
    return f"{form}, |x| of q and o" if options.attention else form


METHOD = Method(
    name="chess",
    source="CHESS (2409.01366)",
    hidden_act=None,
    needs_finetuning=False,
    elsewhere="the dense parent: thresholds are ignored",
    curve=_curve,
    score=_score,
    needs_sparsity=True,
    options=frozenset({"chess_score", "attention"}),
)
