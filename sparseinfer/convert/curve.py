"""How sparse a layer can be made, and what that costs it: masks for any sparsity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sparseinfer.convert.masks import LayerMask

GRID = tuple(step / 20 for step in range(20))
"""Sparsities that `OutputError` is measured at; 0 costs nothing."""


@dataclass(frozen=True)
class OutputError:
    """What a layer's output loses, by its sparsity, relative to the output's norm.

    Attributes:
        values: at each sparsity of `GRID`, made non-decreasing.
    """

    values: tuple[float, ...]

    @classmethod
    def measured(cls, values: Sequence[float]) -> OutputError:
        return cls(tuple(np.maximum.accumulate(np.asarray(values, dtype=np.float64)).tolist()))

    def sparsity(self, error: float) -> float:
        """The largest sparsity on the grid's straight lines whose error is at most `error`."""
        if error >= self.values[-1]:
            return GRID[-1]
        above = int(np.searchsorted(self.values, error, side="right"))
        low, high = self.values[above - 1], self.values[above]
        step = GRID[above] - GRID[above - 1]
        return GRID[above - 1] + step * (error - low) / (high - low)


@dataclass(frozen=True)
class Scores:
    """Scores |x_j| w_j of one layer over calibration tokens.

    Attributes:
        ascending: fp32 [N], of all tokens and channels or a sample of them, sorted.
        weight: w, fp32 [channels], above 0.
    """

    ascending: np.ndarray
    weight: Tensor

    def threshold(self, sparsity: float) -> Tensor:
        """Threshold fp32 [channels] on |x|: the `sparsity` quantile of the scores over w."""
        return torch.tensor(self._quantile(sparsity)) / self.weight

    def reached(self, sparsity: float) -> float:
        """Fraction of scores that miss the threshold for `sparsity`, or are 0."""
        zeros = np.searchsorted(self.ascending, np.float32(0), side="right")
        return max(self.missed(sparsity), float(zeros) / self.ascending.size)

    def missed(self, sparsity: float) -> float:
        """Fraction of scores that miss the threshold for `sparsity`."""
        theta = np.float32(self._quantile(sparsity))  # else numpy widens all scores to search them
        below = np.searchsorted(self.ascending, theta, side="left")
        return float(below) / self.ascending.size

    def _quantile(self, sparsity: float) -> float:
        rank = min(int(sparsity * self.ascending.size), self.ascending.size - 1)
        # Of many equal scores none is dropped unless all may be.
        return float(self.ascending[rank]) if rank else 0.0


@dataclass(frozen=True)
class Reached:
    """Sparsity on the calibration tokens, each in [0, 1].

    Attributes:
        neurons: fraction of neurons skipped.
        inputs: projection -> fraction of its inputs skipped.
    """

    neurons: float
    inputs: Mapping[str, float] = field(default_factory=dict)


class LayerCurve(Protocol):
    """One layer under one method, as a function of its sparsity in the method's own words."""

    @property
    def output_error(self) -> OutputError:
        """What a sparsity costs the layer's output."""
        ...

    def mask(self, sparsity: float) -> LayerMask:
        """What is taken as 0 at a sparsity in [0, 1)."""
        ...

    def reached(self, sparsity: float) -> Reached:
        """What that gives on the calibration tokens."""
        ...
