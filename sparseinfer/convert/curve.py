"""How the scores of one layer are distributed: thresholds for any sparsity, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

GRID = tuple(step / 20 for step in range(20))
"""Sparsities that `OutputError` is measured at; 0 costs nothing."""


@dataclass(frozen=True)
class OutputError:
    """CETT of a layer by its sparsity: norm(sum of dropped neuron outputs) / norm(FFN output), the
    mean over tokens (Sparsing Law, 2411.02335).

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
class LayerScores:
    """Scores |a_i| w_i of one layer over calibration tokens.

    Attributes:
        sorted_scores: fp32 [N], a sample of the scores of all tokens and neurons, ascending.
        weight: w, fp32 [I], above 0.
        output_error: None where it was not asked for.
    """

    sorted_scores: np.ndarray
    weight: Tensor
    output_error: OutputError | None = None

    def threshold(self, sparsity: float) -> Tensor:
        """Threshold fp32 [I] on |a|: the `sparsity` quantile of the scores over w."""
        rank = min(int(sparsity * self.sorted_scores.size), self.sorted_scores.size - 1)
        # Of many equal scores none is dropped unless all may be.
        theta = float(self.sorted_scores[rank]) if rank else 0.0
        return torch.tensor(theta) / self.weight
