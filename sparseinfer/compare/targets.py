"""How sparse each contender is to be, in its own words or in model bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sparseinfer.compare.contenders import Contender
from sparseinfer.config import ModelConfig
from sparseinfer.convert.curve import LayerCurve
from sparseinfer.convert.masks import Masks
from sparseinfer.formats import WeightFormats
from sparseinfer.report.comparison import TargetKind
from sparseinfer.sparsity import CandidateReads, expected_sparsities

MOST = 0.98
"""Sparsity in a method's own words beyond which calibration has nothing to go by."""
_HALVINGS = 20


@dataclass(frozen=True)
class Target:
    """What one contender is asked for.

    Attributes:
        value: in [0, 1).
        kind: `neuron` or `projections` (a method's own words), or `model_bytes`.
    """

    contender: Contender
    value: float
    kind: TargetKind

    @property
    def key(self) -> str:
        """Names the target in a store of results."""
        return f"{self.contender.name} {self.kind} {self.value!r}"


def targets(
    contenders: Sequence[Contender], sparsities: Sequence[float], model_bytes: Sequence[float]
) -> list[Target]:
    """Every contender at each of `sparsities`, in its own words, and at each of `model_bytes`."""
    found = []
    for one in contenders:
        own: TargetKind = "neuron" if one.counts == "neurons" else "projections"
        found += [Target(one, value, own) for value in sparsities]
        found += [Target(one, value, "model_bytes") for value in model_bytes]
    return found


def masks_for(
    target: Target, curves: Sequence[LayerCurve], config: ModelConfig, formats: WeightFormats
) -> tuple[Masks | None, str | None]:
    """The masks of a target, the same sparsity in every layer, or None and why there are none.

    Args:
        curves: the contender's, one per layer.
    """
    because = target.contender.unfit(formats.layers)
    if because is not None:
        return None, because
    sparsity = target.value
    if target.kind == "model_bytes":
        bits = target.contender.sketch_bits
        reads = None if bits is None else CandidateReads.of_sketch(config, formats, bits)

        def skipped(sparsity: float) -> float:
            return _model_bytes(curves, sparsity, config, formats, reads)

        most = skipped(MOST)
        if most < target.value:
            return None, f"it can skip {most:.1%} of model bytes at most"
        sparsity = _sparsity_for(target.value, skipped)
    return Masks.of([curve.mask(sparsity) for curve in curves]), None


def _sparsity_for(wanted: float, skipped: Callable[[float], float]) -> float:
    low, high = 0.0, MOST
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if skipped(middle) >= wanted else (middle, high)
    return high


def _model_bytes(
    curves: Sequence[LayerCurve],
    sparsity: float,
    config: ModelConfig,
    formats: WeightFormats,
    reads: CandidateReads | None,
) -> float:
    """Model byte sparsity on the calibration tokens."""
    reached = [curve.reached(sparsity) for curve in curves]
    density = {name: [1 - one.inputs[name] for one in reached] for name in reached[0].inputs}
    neurons = [one.neurons for one in reached]
    return expected_sparsities(config, formats, neurons, density, reads).model_bytes
