"""Ways to spread one amount of sparsity over the layers.

Each is a function of one knob that grows with the sparsity: a budget search turns it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sparseinfer.convert.curve import OutputError

Allocation = Callable[[float], list[float]]
"""Knob in [0, 1] -> sparsity of each layer in a method's own words, non-decreasing in the knob."""

ALLOCATIONS = ("uniform", "cett", "sensitivity")
MOST = 0.95
"""No layer gets sparser than this: beyond it calibration has too few active neurons to go by."""

_MOST_DOUBLINGS = 200


def uniform(layers: int) -> Allocation:
    """The same sparsity in every layer, which is the knob."""
    return lambda knob: [min(knob, MOST)] * layers


def shared_cett(errors: Sequence[OutputError]) -> Allocation:
    """One relative output error for all layers, the knob (CETT in Sparsing Law, 2411.02335)."""
    return lambda knob: [min(error.sparsity(knob), MOST) for error in errors]


@dataclass(frozen=True)
class LossRise:
    """KL divergence from the dense model with one layer sparse: `scale * x ** power`,
    x = -ln(1 - sparsity)."""

    scale: float
    power: float

    @classmethod
    def fitted(cls, points: Sequence[tuple[float, float]], least: float) -> LossRise:
        """Through two points (sparsity, rise in nats per token).

        Args:
            least: rises are taken to be at least this: what is lost in noise must not look free.
        """
        (s0, d0), (s1, d1) = points
        x0, x1 = -math.log1p(-s0), -math.log1p(-s1)
        d0, d1 = max(d0, least), max(d1, least)
        # Convex, and not steeper than two noisy points can show.
        power = min(max(math.log(d1 / d0) / math.log(x1 / x0), 1.05), 4.0)
        return cls(d1 / x1**power, power)

    def slope(self, sparsity: float) -> float:
        """Rise per sparsity at a sparsity in [0, 1)."""
        x = -math.log1p(-sparsity)
        return self.scale * self.power * x ** (self.power - 1) / (1 - sparsity)

    def sparsity(self, slope: float) -> float:
        """Where the slope is reached, at most `MOST`."""
        low, high = 0.0, MOST
        if self.slope(high) <= slope:
            return high
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if self.slope(middle) <= slope else (low, middle)
        return low


def by_sensitivity(rises: Sequence[LossRise]) -> Allocation:
    """The least sum of rises for a mean sparsity, the knob: all layers have one slope (a Lagrange
    multiplier), but for those at `MOST`."""

    def allocate(knob: float) -> list[float]:
        wanted = min(knob, MOST)
        low, high = 0.0, 1e-6

        def layers(slope: float) -> list[float]:
            return [rise.sparsity(slope) for rise in rises]

        for _ in range(_MOST_DOUBLINGS):
            if sum(layers(high)) >= wanted * len(rises):
                break
            high *= 2
        for _ in range(60):
            middle = (low + high) / 2
            enough = sum(layers(middle)) >= wanted * len(rises)
            low, high = (low, middle) if enough else (middle, high)
        return layers(high)

    return allocate
