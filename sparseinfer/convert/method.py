"""What a conversion method is: an activation, and a way to choose what is taken as 0."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from sparseinfer.convert.curve import LayerCurve
from sparseinfer.convert.options import MethodOptions
from sparseinfer.convert.statistics import LayerStatistics

TargetKind = Literal["neurons", "projections"]
"""What a method's sparsity counts: neurons that are skipped, or the weights of a layer's seven
projections that are not read."""

MakeCurve = Callable[[LayerStatistics, MethodOptions], LayerCurve]


@dataclass(frozen=True)
class Method:
    """One way to make neurons or inputs of projections inactive.

    Attributes:
        hidden_act: activation the converted model runs; None keeps the parent's.
        needs_finetuning: quality collapses until the model is tuned.
        elsewhere: what plain transformers computes from the result.
        curve: from a layer's statistics to its masks, for methods that are calibrated.
        score: what calibration sorts by, for the record.
        target: what the method's sparsity counts.
        needs_sparsity: there is no useful threshold without a target.
        per_layer: layers may differ in sparsity.
        constant: threshold used when no target is given.
        options: names in `MethodOptions` that the method takes.
        sketch_bits: bits of the sketch whose estimates calibration must know, or None.
    """

    name: str
    source: str
    hidden_act: str | None
    needs_finetuning: bool
    elsewhere: str
    curve: MakeCurve | None = None
    score: Callable[[MethodOptions], str] = lambda _: ""
    target: TargetKind = "neurons"
    needs_sparsity: bool = False
    per_layer: bool = True
    constant: float | None = None
    options: frozenset[str] = frozenset()
    sketch_bits: Callable[[MethodOptions], int | None] = lambda _: None
