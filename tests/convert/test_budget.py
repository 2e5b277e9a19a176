"""Curves, allocations and the budget search, on losses that are known in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sparseinfer.convert.allocate import MOST, LossRise, by_sensitivity, shared_cett, uniform
from sparseinfer.convert.budget import Measurement, search
from sparseinfer.convert.curve import GRID, OutputError, Scores
from sparseinfer.convert.gate_curve import GateCurve
from sparseinfer.errors import CalibrationError

LAYERS, NEURONS = 4, 1000
WINDOWS = torch.zeros(8, 16, dtype=torch.int64)
COSTS = (0.001, 0.004, 0.02, 0.08)
"""Of each layer: the loss rises by cost * x ** 2, x = -ln(1 - sparsity)."""


def curve(error: float = 1.0) -> GateCurve:
    """Scores 1/1000, 2/1000, ..., 1, and an output error that grows with the sparsity."""
    grid = np.arange(1, NEURONS + 1, dtype=np.float32) / NEURONS
    errors = OutputError.measured([error * s for s in GRID])
    return GateCurve(Scores(grid, torch.ones(NEURONS)), errors)


class KnownModel:
    """A probe whose loss and bytes follow from the thresholds."""

    def __init__(self, costs=COSTS) -> None:
        self.costs = costs
        self.runs = 0

    def rises(self, masks) -> tuple[list[float], list[float]]:
        thresholds = masks.gate or [torch.zeros(1)] * LAYERS
        sparsity = [float((torch.arange(1, 1001) / 1000 < t).float().mean()) for t in thresholds]
        return sparsity, [
            c * math.log1p(-s) ** 2 for c, s in zip(self.costs, sparsity, strict=True)
        ]

    def measure(self, masks, windows) -> Measurement:
        self.runs += 1
        sparsity, rises = self.rises(masks)
        saved = 2 / 3 * sum(sparsity) / LAYERS
        return Measurement(3.0 + sum(rises), 1e6 * (1 - saved), saved)

    def kl(self, masks, windows) -> float:
        return sum(self.rises(masks)[1])


def test_thresholds_are_quantiles_over_weights():
    weight = torch.tensor([1.0, 2.0])
    found = Scores(np.array([1, 2, 3, 4], dtype=np.float32), weight)
    assert found.threshold(0.5).tolist() == [3.0, 1.5]
    assert found.threshold(0.0).tolist() == [0.0, 0.0], "nothing is skipped at 0"
    assert found.threshold(0.999).tolist() == [4.0, 2.0]


def test_reached_counts_what_is_zero_anyway():
    found = Scores(np.array([0, 0, 0, 1, 2], dtype=np.float32), torch.ones(1))
    assert found.reached(0.0) == found.reached(0.2) == pytest.approx(0.6)
    assert found.reached(0.8) == pytest.approx(0.8)


def test_output_error_is_inverted_along_straight_lines():
    error = OutputError.measured([2 * s for s in GRID])
    assert error.sparsity(1.0) == pytest.approx(0.5)
    assert error.sparsity(0.33) == pytest.approx(0.165)
    assert error.sparsity(0.0) == 0.0
    assert error.sparsity(100.0) == GRID[-1]


def test_output_error_never_falls():
    assert OutputError.measured([0, 0.2, 0.1, 0.3]).values == (0, 0.2, 0.2, 0.3)


def test_uniform_and_cett_grow_with_the_knob():
    errors = [OutputError.measured([k * s for s in GRID]) for k in (0.5, 1.0, 2.0)]
    for allocation in (uniform(3), shared_cett(errors)):
        before = [0.0] * 3
        for knob in np.linspace(0, 1, 21):
            now = allocation(float(knob))
            assert all(0 <= a <= b <= MOST for a, b in zip(before, now, strict=True))
            before = now
    assert shared_cett(errors)(0.4) == pytest.approx([0.8, 0.4, 0.2])


def test_loss_rise_goes_through_its_points():
    rise = LossRise.fitted([(0.5, 0.01), (0.8, 0.07)], 1e-9)
    for sparsity, expected in ((0.5, 0.01), (0.8, 0.07)):
        found = rise.scale * (-math.log1p(-sparsity)) ** rise.power
        assert found == pytest.approx(expected, rel=1e-9)
    step = 1e-6
    value = lambda s: rise.scale * (-math.log1p(-s)) ** rise.power  # noqa: E731
    slope = (value(0.6 + step) - value(0.6 - step)) / (2 * step)
    assert rise.slope(0.6) == pytest.approx(slope, rel=1e-5)
    assert rise.sparsity(slope) == pytest.approx(0.6, abs=1e-6)


def test_noise_below_zero_still_costs_something():
    rise = LossRise.fitted([(0.5, -0.1), (0.8, 0.02)], 1e-4)
    assert rise.scale > 0
    assert rise.slope(0.5) > 0


def test_sensitivity_spends_where_it_is_cheap_and_meets_the_mean():
    allocation = by_sensitivity([LossRise(cost, 2.0) for cost in COSTS])
    for mean in (0.1, 0.5, 0.8):
        layers = allocation(mean)
        assert sum(layers) / LAYERS == pytest.approx(mean, abs=1e-3)
        assert layers == sorted(layers, reverse=True), "cheap layers first"
    slopes = [LossRise(c, 2.0).slope(s) for c, s in zip(COSTS, allocation(0.5), strict=True)]
    assert slopes == pytest.approx([slopes[0]] * LAYERS, rel=1e-3), "one Lagrange multiplier"


@pytest.mark.parametrize("budget", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("allocation", ["uniform", "cett", "sensitivity"])
def test_each_search_lands_within_its_budget(budget, allocation):
    layers = [curve(error=c * 20) for c in COSTS]
    model = KnownModel()
    found = search(layers, model, WINDOWS, budget=budget, allocations=[allocation])
    assert 0.9 * budget <= found.best.perplexity_ratio - 1 <= budget
    assert found.dense_perplexity == pytest.approx(math.exp(3.0))
    assert model.runs <= 8, "a power law is found in a few tries"


def test_all_allocations_never_read_more_than_uniform():
    layers = [curve(error=c * 20) for c in COSTS]
    best = search(layers, KnownModel(), WINDOWS, budget=0.02).best
    alone = search(layers, KnownModel(), WINDOWS, budget=0.02, allocations=["uniform"]).best
    assert best.bytes_read < alone.bytes_read
    assert best.allocation == "sensitivity"


def test_an_allocation_that_starts_worse_is_given_up_at_once():
    """Output errors that say the opposite of what layers cost."""
    layers = [curve(error=c) for c in reversed(COSTS)]
    found = search(layers, KnownModel(), WINDOWS, budget=0.02, allocations=["uniform", "cett"])
    assert found.best.allocation == "uniform"
    tried = [step for step in found.trace if step.allocation == "cett"]
    assert len(tried) == 1
    assert tried[0].mean_sparsity == pytest.approx(found.best.mean_sparsity, abs=0.01)


def test_equal_layers_leave_nothing_to_gain():
    layers = [curve()] * LAYERS
    model = KnownModel((0.01,) * LAYERS)
    sensitive = search(layers, model, WINDOWS, budget=0.02, allocations=["sensitivity"]).best
    assert sensitive.layer_sparsity == pytest.approx([sensitive.knob] * LAYERS, abs=2e-3)


def test_budget_that_any_sparsity_meets_ends_at_the_most():
    found = search([curve()] * LAYERS, KnownModel((0.0,) * LAYERS), WINDOWS, budget=0.01)
    assert found.best.mean_sparsity == pytest.approx(MOST, abs=0.01)


def test_budget_that_nothing_meets():
    class Fragile(KnownModel):
        def measure(self, masks, windows):
            found = super().measure(masks, windows)
            extra = 0.5 if found.model_byte_sparsity else 0.0
            return Measurement(found.nll + extra, found.bytes_read, found.model_byte_sparsity)

    with pytest.raises(CalibrationError, match=r"1\.000% .* smallest rise .* 6[45]\.\d+%"):
        search([curve()] * LAYERS, Fragile(), WINDOWS, budget=0.01, allocations=["uniform"])
