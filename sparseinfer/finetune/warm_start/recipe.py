"""How a layer is fitted: what was chosen once for all models, and measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """
    Attributes:
        epochs: times that each token is fitted on.
        batch: tokens of a step.
        rate: learning rate at the peak, as a part of the root mean square of the matrix.
        correction: part of the target that corrects the residual stream; the rest is the dense
            FFN's output.
        l1: weight of the neurons' outputs, each times the norm of its column of down: what makes
            neurons rest that give little.
    """

    epochs: int = 3
    batch: int = 512
    rate: float = 0.02
    correction: float = 0.5
    l1: float = 0.004
