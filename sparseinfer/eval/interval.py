"""Confidence intervals of means over windows, by Student's t distribution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.95
_GRID = 200_001


class MeanInterval(NamedTuple):
    """A weighted mean with its standard error and its interval of `CONFIDENCE`."""

    mean: float
    stderr: float
    low: float
    high: float


def weighted_mean_interval(values: Sequence[float], weights: Sequence[float]) -> MeanInterval:
    """Mean of one value per window, each window weighted, windows taken as independent.

    The standard error is that of a ratio estimator (sum of weighted values over sum of weights):
    sqrt(n / (n - 1) * sum(w_i^2 (x_i - mean)^2)) / sum(w_i). With equal weights that is the usual
    standard deviation over sqrt(n).

    Raises:
        ValueError: fewer than two windows: nothing says how much they vary.
    """
    x, w = np.asarray(values, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    count = len(x)
    if count < 2:
        raise ValueError("an interval needs at least two windows")
    total = w.sum()
    mean = float((w * x).sum() / total)
    scatter = float((np.square(w * (x - mean))).sum())
    stderr = float(np.sqrt(count / (count - 1) * scatter) / total)
    reach = t_quantile(CONFIDENCE, count - 1) * stderr
    return MeanInterval(mean, stderr, mean - reach, mean + reach)


def t_quantile(confidence: float, degrees: int) -> float:
    """t so that a Student's t variable of so many degrees of freedom lies in [-t, t] with a
    probability of `confidence`.

    With x = sqrt(degrees) tan(angle) the density becomes cos(angle)^(degrees - 1), which is summed
    over a fine grid: right to six digits.
    """
    angles = np.linspace(0, np.pi / 2, _GRID)
    density = np.cos(angles) ** (degrees - 1)
    area = np.concatenate(([0.0], np.cumsum((density[1:] + density[:-1]) / 2)))
    angle = np.interp(confidence, area / area[-1], angles)
    return float(np.sqrt(degrees) * np.tan(angle))
