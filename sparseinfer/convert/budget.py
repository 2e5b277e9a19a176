"""How much sparsity a quality budget buys: the fewest bytes within a rise of perplexity.

Knows the model only through a `Probe`, which runs it on held-out text with given thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from sparseinfer.checkpoint.layout import Progress, no_progress
from sparseinfer.convert.allocate import (
    ALLOCATIONS,
    Allocation,
    LossRise,
    by_sensitivity,
    shared_cett,
    uniform,
)
from sparseinfer.convert.curve import LayerScores, OutputError
from sparseinfer.errors import CalibrationError

LANDING = 0.8
"""A search ends where the rise is between this fraction of the budget and the budget."""

LEAST = 0.01
"""Mean neuron sparsity below which a result is none."""

SENSITIVITY_SPARSITIES = (0.5, 0.8)

_STEPS = 12


@dataclass(frozen=True)
class Measurement:
    """One run of the model on the search text.

    Attributes:
        nll: mean over tokens, in nats.
        bytes_read: of weights per token, at the sparsity that was counted.
        neuron_sparsity: counted, of each layer.
    """

    nll: float
    bytes_read: float
    neuron_sparsity: tuple[float, ...]


Probe = Callable[[Sequence[Tensor], Tensor], Measurement]
"""Runs the model with thresholds (one fp32 [I] per layer) on windows of token ids int64 [W, T]."""


@dataclass(frozen=True)
class Step:
    """One try of a search."""

    allocation: str
    knob: float
    layer_sparsity: tuple[float, ...]
    perplexity_ratio: float
    bytes_read: float

    @property
    def mean_sparsity(self) -> float:
        """Asked for, over layers."""
        return sum(self.layer_sparsity) / len(self.layer_sparsity)


@dataclass(frozen=True)
class BudgetResult:
    """What a search found, and all that it tried.

    Attributes:
        best: the step that was kept.
        thresholds: its thresholds, fp32 [I] per layer.
        dense_perplexity: on the search text.
    """

    best: Step
    thresholds: list[Tensor]
    dense_perplexity: float
    trace: tuple[Step, ...]


def search(
    scores: Sequence[LayerScores],
    probe: Probe,
    windows: Tensor,
    *,
    budget: float,
    allocations: Sequence[str] = ALLOCATIONS,
    progress: Progress = no_progress,
) -> BudgetResult:
    """Finds, for each allocation, how far its knob turns within the budget, and keeps the result
    that reads the fewest bytes.

    Args:
        windows: held-out token ids int64 [W, T].
        budget: relative rise of perplexity that is allowed, above 0.
        allocations: of `ALLOCATIONS`.

    Raises:
        CalibrationError: the smallest sparsity that was tried already costs more than the budget.
    """
    dense = probe(_thresholds(scores, [0.0] * len(scores)), windows)
    trace: list[Step] = []
    for name in allocations:
        knob_of = _allocation(name, scores, probe, windows, progress)
        trace += _bisect(name, knob_of, scores, probe, windows, dense, budget, progress)
    sparse = [step for step in trace if step.mean_sparsity >= LEAST]
    within = [step for step in sparse if step.perplexity_ratio <= 1 + budget]
    if not within:
        least = min(sparse, key=lambda step: step.perplexity_ratio)
        raise CalibrationError(
            f"no sparsity keeps perplexity within {budget:.3%} of dense: the smallest rise that "
            f"was found is {least.perplexity_ratio - 1:.3%}, at sparsity "
            f"{least.mean_sparsity:.3f}; allow more with --ppl-budget, or set --sparsity"
        )
    best = min(within, key=lambda step: step.bytes_read)
    return BudgetResult(
        best=best,
        thresholds=_thresholds(scores, best.layer_sparsity),
        dense_perplexity=math.exp(dense.nll),
        trace=tuple(trace),
    )


def _allocation(
    name: str,
    scores: Sequence[LayerScores],
    probe: Probe,
    windows: Tensor,
    progress: Progress,
) -> Allocation:
    makers: Mapping[str, Callable[[], Allocation]] = {
        "uniform": lambda: uniform(len(scores)),
        "cett": lambda: shared_cett([_error(one) for one in scores]),
        "sensitivity": lambda: by_sensitivity(_rises(scores, probe, windows, progress)),
    }
    return makers[name]()


def _error(scores: LayerScores) -> OutputError:
    assert scores.output_error is not None, "calibrate with output errors for this allocation"
    return scores.output_error


def _rises(
    scores: Sequence[LayerScores],
    probe: Probe,
    windows: Tensor,
    progress: Progress,
) -> list[LossRise]:
    """Loss with one layer sparse at a time, on a quarter of the text."""
    layers, some = len(scores), windows[: max(1, len(windows) // 4)]
    dense = probe(_thresholds(scores, [0.0] * layers), some)
    total, done, rises = layers * len(SENSITIVITY_SPARSITIES), 0, []
    for layer in range(layers):
        points = []
        for sparsity in SENSITIVITY_SPARSITIES:
            one = [sparsity if index == layer else 0.0 for index in range(layers)]
            found = probe(_thresholds(scores, one), some)
            points.append((sparsity, found.nll - dense.nll))
            done += 1
            progress("measuring sensitivity", done, total)
        rises.append(points)
    typical = sorted(abs(points[-1][1]) for points in rises)[layers // 2]
    least = max(0.02 * typical, 1e-7)
    return [LossRise.fitted(points, least) for points in rises]


def _bisect(
    name: str,
    allocation: Allocation,
    scores: Sequence[LayerScores],
    probe: Probe,
    windows: Tensor,
    dense: Measurement,
    budget: float,
    progress: Progress,
) -> list[Step]:
    """Turns the knob towards the budget; the steps in the order they were tried."""
    low, high, knob = 0.0, 1.0, 0.4
    steps: list[Step] = []
    for done in range(_STEPS):
        sparsity = tuple(allocation(knob))
        found = probe(_thresholds(scores, sparsity), windows)
        ratio = math.exp(found.nll - dense.nll)
        steps.append(Step(name, knob, sparsity, ratio, found.bytes_read))
        progress(f"searching, {name}", done + 1, _STEPS)
        if LANDING * budget <= ratio - 1 <= budget:
            break
        low, high = (knob, high) if ratio - 1 <= budget else (low, knob)
        if high - low < 1e-3:
            break
        knob = (low + high) / 2
    progress(f"searching, {name}", _STEPS, _STEPS)
    return steps


def _thresholds(scores: Sequence[LayerScores], sparsity: Sequence[float]) -> list[Tensor]:
    return [one.threshold(s) for one, s in zip(scores, sparsity, strict=True)]
