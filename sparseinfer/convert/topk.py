"""Top-k: every token keeps the k neurons of largest |phi(x W_gate)|, in every layer."""

from dataclasses import dataclass

from sparseinfer.convert.curve import OutputError, Reached
from sparseinfer.convert.masks import LayerMask
from sparseinfer.convert.method import Method
from sparseinfer.convert.options import MethodOptions
from sparseinfer.convert.statistics import LayerStatistics


@dataclass(frozen=True)
class TopKCurve:
    """A fixed count for every token.

    Attributes:
        neurons: I.
    """

    neurons: int
    output_error: OutputError

    def mask(self, sparsity: float) -> LayerMask:
        return LayerMask(top_k=kept(sparsity, self.neurons))

    def reached(self, sparsity: float) -> Reached:
        return Reached(1 - kept(sparsity, self.neurons) / self.neurons)


def kept(sparsity: float, neurons: int) -> int:
    """k for a sparsity in [0, 1)."""
    return max(1, round((1 - sparsity) * neurons))


def _curve(layer: LayerStatistics, _options: MethodOptions) -> TopKCurve:
    neurons = layer.neurons
    return TopKCurve(neurons, layer.top_k_errors(lambda s: kept(s, neurons)))


METHOD = Method(
    name="topk",
    source="Lazy Neuron (2210.06313), Q-Sparse (2407.10969)",
    hidden_act=None,
    needs_finetuning=False,
    elsewhere="the model without the mask, all neurons",
    curve=_curve,
    score=lambda _: "|a|",
    needs_sparsity=True,
    per_layer=False,
)
