"""Means over equal bins: a long curve as few points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise


def groups(count: int, most: int) -> list[range]:
    """0 to count - 1 as at most `most` neighbouring runs, equally long up to one.

    Raises:
        ValueError: nothing to divide.
    """
    if count < 1:
        raise ValueError("there are no steps to draw a curve of")
    bins = min(count, most)
    ends = [count * i // bins for i in range(bins + 1)]
    return [range(begin, end) for begin, end in pairwise(ends)]


def binned(values: Sequence[float | None], bins: Sequence[range]) -> tuple[float | None, ...]:
    """The mean of each bin's values that are there and finite; None where there are none."""
    return tuple(_mean([values[i] for i in one]) for one in bins)


def _mean(values: Sequence[float | None]) -> float | None:
    found = [value for value in values if value is not None and math.isfinite(value)]
    return math.fsum(found) / len(found) if found else None
