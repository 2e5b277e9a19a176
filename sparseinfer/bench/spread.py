"""Median with spread: how every repeated measurement is given."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Smallest, median and largest of repeated measurements, and all of them in order."""

    min: float
    median: float
    max: float
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Raises ValueError for no values at all."""
        if not values:
            raise ValueError("no measurements to summarise")
        return cls(min(values), statistics.median(values), max(values), tuple(values))


def ratios(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Of measurements taken in pairs: the ratio of each pair, not of the medians.

    Raises:
        ValueError: lists of different length, or empty.
    """
    return Spread.of([a / b for a, b in zip(above, below, strict=True)])
