"""What a reader should know before trusting an evaluation's figures."""

from __future__ import annotations

from collections.abc import Iterator

from sparseinfer.eval.evaluate import Evaluation
from sparseinfer.eval.held_out import seen_as

DRIFT = 0.05
"""A layer's sparsity this far from the calibrated one is worth a word."""

MISSED = 0.01
"""Recall that falls short by more than this is, too."""


def caveats(found: Evaluation) -> Iterator[str]:
    """One sentence or two each."""
    seen = seen_as(found.record, found.recipe.text, found.recipe.text_sha256)
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
    yield from _predicted(found)
    if found.tasks and found.tasks.limit is not None:
        yield f"Tasks ran on their first {found.tasks.limit} examples, not on all."


def _predicted(found: Evaluation) -> Iterator[str]:
    """Published predictors reached their recall by letting most neurons through."""
    one = found.predictor
    if one is None or not one.layers:
        return
    count = len(one.layers)
    recall = sum(layer.recall for layer in one.layers) / count
    if recall < one.record.recall - MISSED:
        yield (
            f"The predictor finds {recall:.1%} of the neurons that fire here, not the "
            f"{one.record.recall:.1%} that it was calibrated to."
        )
    true, predicted = (
        sum(getattr(layer, name) for layer in one.layers) / count
        for name in ("true_sparsity", "predicted_sparsity")
    )
    if predicted < true / 2:
        yield (
            f"The predictor loses more than half of the sparsity: it skips {predicted:.1%} of "
            f"neurons, {true:.1%} do not fire."
        )


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
