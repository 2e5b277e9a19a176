"""How much sparsity a quality budget buys: bisection for each allocation, the cheapest result wins.

The loss is measured by running the model; this module knows it only as a `Probe`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from sparseinfer.checkpoint.layout import Progress, no_progress
from sparseinfer.convert.allocate import (
    ALLOCATIONS,
    MOST,
    Allocation,
    LossRise,
    by_sensitivity,
    shared_cett,
    uniform,
)
from sparseinfer.convert.curve import LayerCurve
from sparseinfer.convert.masks import Masks
from sparseinfer.errors import CalibrationError

LANDING = 0.9
"""A search ends where the rise is between this fraction of the budget and the budget."""

LEAST = 0.01
"""Mean sparsity below which a result is none."""

_SHALLOWEST = 0.3
"""Least sparsity at which single layers are tried: with less there is too little to see."""
_FIRST = 0.3
"""Mean sparsity that is tried first."""
_STEPS = 12
_NARROWEST = 1e-3
_TYPICAL_POWER = 2.0
"""Of x = -ln(1 - sparsity) in the rise of perplexity."""
_EDGE = 0.05
"""A next try keeps this fraction of the bracket away from its ends."""


@dataclass(frozen=True)
class Measurement:
    """One run of the model.

    Attributes:
        nll: mean over tokens, in nats.
        bytes_read: of weights per token, at the sparsity that was counted.
        model_byte_sparsity: the same as a fraction of what a dense step reads that is not read.
    """

    nll: float
    bytes_read: float
    model_byte_sparsity: float


class Probe(Protocol):
    """Runs the model with masks on windows of token ids int64 [W, T]."""

    def measure(self, masks: Masks, windows: Tensor) -> Measurement:
        """How well the text is predicted, and what is read for that."""
        ...

    def kl(self, masks: Masks, windows: Tensor) -> float:
        """Mean KL(dense || masked) of next-token distributions per token, in nats."""
        ...


@dataclass(frozen=True)
class Step:
    """One try of a search."""

    allocation: str
    knob: float
    layer_sparsity: tuple[float, ...]
    perplexity_ratio: float
    bytes_read: float
    model_byte_sparsity: float

    @property
    def mean_sparsity(self) -> float:
        """Asked for, over layers."""
        return sum(self.layer_sparsity) / len(self.layer_sparsity)


@dataclass(frozen=True)
class BudgetResult:
    """What a search found, and all that it tried.

    Attributes:
        best: the step that was kept.
        dense_perplexity: on the search text.
    """

    best: Step
    dense_perplexity: float
    trace: tuple[Step, ...]


def search(
    curves: Sequence[LayerCurve],
    probe: Probe,
    windows: Tensor,
    *,
    budget: float,
    allocations: Sequence[str] = ALLOCATIONS,
    progress: Progress = no_progress,
) -> BudgetResult:
    """Finds, for each allocation, how far its knob turns within the budget, and keeps the result
    that reads the fewest bytes.

    An allocation after the first begins at the mean sparsity of the best so far. Where that costs
    more than the budget it cannot win, and nothing else is tried of it.

    Args:
        windows: held-out token ids int64 [W, T].
        budget: relative rise of perplexity that is allowed, above 0.
        allocations: of `ALLOCATIONS`.

    Raises:
        CalibrationError: the smallest sparsity that was tried already costs more than the budget.
    """
    run = _Search(curves, probe, windows, budget, progress)
    for name in allocations:
        run.try_allocation(name)
    if run.best is None:
        least = min(run.sparse, key=lambda step: step.perplexity_ratio)
        raise CalibrationError(
            f"no sparsity keeps perplexity within {budget:.3%} of dense: the smallest rise that "
            f"was found is {least.perplexity_ratio - 1:.3%}, at sparsity "
            f"{least.mean_sparsity:.3f}; allow more with --ppl-budget, or set --sparsity"
        )
    return BudgetResult(run.best, math.exp(run.dense.nll), tuple(run.trace))


class _Search:
    """What all allocations have in common, and what was found so far."""

    def __init__(
        self,
        curves: Sequence[LayerCurve],
        probe: Probe,
        windows: Tensor,
        budget: float,
        progress: Progress,
    ) -> None:
        self._curves = curves
        self._probe = probe
        self._windows = windows
        self._budget = budget
        self._progress = progress
        self.dense = probe.measure(Masks(), windows)
        self.trace: list[Step] = []

    @property
    def sparse(self) -> list[Step]:
        return [step for step in self.trace if step.mean_sparsity >= LEAST]

    @property
    def best(self) -> Step | None:
        within = [step for step in self.sparse if self._within(step)]
        return min(within, key=lambda step: step.bytes_read, default=None)

    def try_allocation(self, name: str) -> None:
        """Turns the knob of one allocation towards the budget."""
        begin = self.best.mean_sparsity if self.best else _FIRST
        allocation = self._allocation(name, begin)
        low, high = 0.0, 1.0
        known: list[Step] = []
        knob = _knob_of(allocation, begin)
        beaten = self.best is not None
        for done in range(_STEPS):
            step = self._try(name, knob, tuple(allocation(knob)))
            self._progress(f"searching, {name}", done + 1, _STEPS)
            rise = step.perplexity_ratio - 1
            if beaten and not self._within(step):
                break
            beaten = False
            if LANDING * self._budget <= rise <= self._budget:
                break
            low, high = (knob, high) if rise <= self._budget else (low, knob)
            if high - low < _NARROWEST or (low == knob and min(step.layer_sparsity) >= MOST):
                break
            known.append(step)
            margin = _EDGE * (high - low)
            mean = _next_mean(known, (LANDING + 1) / 2 * self._budget)
            guess = (low + high) / 2 if mean is None else _knob_of(allocation, mean)
            knob = min(max(guess, low + margin), high - margin)
        self._progress(f"searching, {name}", _STEPS, _STEPS)

    def _try(self, name: str, knob: float, sparsity: tuple[float, ...]) -> Step:
        masks = Masks.of([c.mask(s) for c, s in zip(self._curves, sparsity, strict=True)])
        found = self._probe.measure(masks, self._windows)
        step = Step(
            name,
            knob,
            sparsity,
            math.exp(found.nll - self.dense.nll),
            found.bytes_read,
            found.model_byte_sparsity,
        )
        self.trace.append(step)
        return step

    def _within(self, step: Step) -> bool:
        return step.perplexity_ratio <= 1 + self._budget

    def _allocation(self, name: str, mean: float) -> Allocation:
        makers: Mapping[str, Callable[[], Allocation]] = {
            "uniform": lambda: uniform(len(self._curves)),
            "cett": lambda: shared_cett([curve.output_error for curve in self._curves]),
            "sensitivity": lambda: by_sensitivity(self._rises(mean)),
        }
        return makers[name]()

    def _rises(self, mean: float) -> list[LossRise]:
        """What sparsity costs in one layer at a time, at about the mean that is looked for and half
        the way from there to 1, by the divergence from the dense model: at little text it is far
        less noisy than the loss. One window is enough."""
        shallow = max(mean, _SHALLOWEST)
        tried = (shallow, (1 + shallow) / 2)
        layers = len(self._curves)
        total, done, rises = layers * len(tried), 0, []
        for layer in range(layers):
            points = []
            for sparsity in tried:
                masks = _one_layer(self._curves, layer, sparsity)
                points.append((sparsity, self._probe.kl(masks, self._windows[:1])))
                done += 1
                self._progress("measuring sensitivity", done, total)
            rises.append(points)
        typical = sorted(points[-1][1] for points in rises)[layers // 2]
        least = max(0.01 * typical, 1e-7)
        return [LossRise.fitted(points, least) for points in rises]


def _one_layer(curves: Sequence[LayerCurve], layer: int, sparsity: float) -> Masks:
    """One layer sparse, the others with masks that take nothing as 0."""
    return Masks.of(
        [curve.mask(sparsity if index == layer else 0.0) for index, curve in enumerate(curves)]
    )


def _knob_of(allocation: Allocation, mean: float) -> float:
    """The knob that gives a mean sparsity."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        layers = allocation(middle)
        low, high = (middle, high) if sum(layers) <= mean * len(layers) else (low, middle)
    return low


def _next_mean(known: Sequence[Step], wanted: float) -> float | None:
    """The mean sparsity where the rise of perplexity is `wanted`, by a power law in
    x = -ln(1 - mean sparsity) through the two tries nearest to it; None where none is of use."""
    points = [(-math.log1p(-step.mean_sparsity), step.perplexity_ratio - 1) for step in known]
    usable = sorted(
        (point for point in points if point[0] > 0 and point[1] > 0),
        key=lambda point: abs(math.log(point[1] / wanted)),
    )[:2]
    if not usable:
        return None
    x, rise = usable[0]
    power = _TYPICAL_POWER
    if len(usable) == 2:
        (x0, y0), (x1, y1) = sorted(usable)
        if x1 > x0 and y1 > y0:
            power = math.log(y1 / y0) / math.log(x1 / x0)
    return -math.expm1(-x * (wanted / rise) ** (1 / power))
