"""WINA: TEAL's rule on |x_j| norm(W[:, j]), an input times the norm of the weights it meets.

Published with the k largest scores of each token; here, as in TEAL, with thresholds, which need no
sorting. Its orthogonal transformation of the weights is left out: it changes the checkpoint.
"""

from sparseinfer.convert.input_curve import InputCurve, make_input_curve
from sparseinfer.convert.method import Method
from sparseinfer.convert.options import MethodOptions
from sparseinfer.convert.statistics import INPUT_OF, LayerStatistics
from sparseinfer.layerwise import MODULES


def _curve(layer: LayerStatistics, options: MethodOptions) -> InputCurve:
    scores = {
        name: layer.inputs[INPUT_OF[name]].scores(layer.column_norm(name)) for name in MODULES
    }
    return make_input_curve(
        layer.block, scores, layer.weight_share(), greedy=options.within_block != "uniform"
    )


METHOD = Method(
    name="wina",
    source="WINA (2505.19427)",
    hidden_act=None,
    needs_finetuning=False,
    elsewhere="the dense parent: thresholds are ignored",
    curve=_curve,
    score=lambda options: f"|x_j| norm(W[:, j]), {options.within_block or 'greedy'} within a layer",
    target="projections",
    needs_sparsity=True,
    options=frozenset({"within_block"}),
)
