"""What a reader should know before trusting an evaluation's figures."""

from __future__ import annotations

from collections.abc import Iterator

from sparseinfer.eval.evaluate import Evaluation
from sparseinfer.eval.held_out import seen_as

DRIFT = 0.05
"""A layer's sparsity this far from the calibrated one is worth a word."""


def caveats(found: Evaluation) -> Iterator[str]:
    """One sentence or two each."""
    seen = seen_as(found.record, found.recipe.text_sha256)
    if seen:
        yield (
            f"The model was {seen} {found.recipe.text}: its figures on this text are better than "
            "on one it has not seen."
        )
    if found.record and found.comparison is None:
        yield f"Not compared with the dense parent: {found.no_comparison_because}."
    if found.comparison and found.comparison.weights != found.model.weights:
        yield (
            f"The dense parent was held in {found.comparison.weights}, the model in "
            f"{found.model.weights}: the ratio has both the loss to sparsity and that to rounding."
        )
    if found.comparison and found.comparison.no_interval_because:
        yield f"No interval of the ratio: {found.comparison.no_interval_because}."
    yield from _drift(found)
    if found.tasks and found.tasks.limit is not None:
        yield f"Tasks ran on their first {found.tasks.limit} examples, not on all."


def _drift(found: Evaluation) -> Iterator[str]:
    calibration = found.record.calibration if found.record else None
    if calibration is None:
        return
    pairs = list(zip(found.layer_sparsity, calibration.layer_sparsity, strict=True))
    worst = max(range(len(pairs)), key=lambda layer: abs(pairs[layer][0] - pairs[layer][1]))
    realised, calibrated = pairs[worst]
    if abs(realised - calibrated) > DRIFT:
        yield (
            f"Neuron sparsity is not what was calibrated: furthest off in layer {worst}, "
            f"{realised:.1%} in place of {calibrated:.1%}."
        )
