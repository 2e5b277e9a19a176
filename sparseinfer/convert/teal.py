"""TEAL: inputs of all seven projections count where they reach a threshold.

One threshold per projection and layer, the quantile of |x| over calibration tokens. Sparsity is
that of the projections' weights: the fraction that is not read.
"""

from sparseinfer.convert.input_curve import InputCurve, make_input_curve
from sparseinfer.convert.method import Method
from sparseinfer.convert.options import MethodOptions
from sparseinfer.convert.statistics import INPUT_OF, LayerStatistics
from sparseinfer.layerwise import MODULES


def _curve(layer: LayerStatistics, options: MethodOptions) -> InputCurve:
    distinct = {source: signal.scores() for source, signal in layer.inputs.items()}
    return make_input_curve(
        layer.block,
        {name: distinct[INPUT_OF[name]] for name in MODULES},
        layer.weight_share(),
        greedy=options.within_block != "uniform",
    )


METHOD = Method(
    name="teal",
    source="TEAL (2408.14690)",
    hidden_act=None,
    needs_finetuning=False,
    elsewhere="the dense parent: thresholds are ignored",
    curve=_curve,
    score=lambda options: f"|x|, {options.within_block or 'greedy'} within a layer",
    target="projections",
    needs_sparsity=True,
    options=frozenset({"within_block"}),
)
