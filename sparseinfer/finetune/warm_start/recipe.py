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
        ridge: of the least squares for down, relative to each neuron's own second moment.
        l1: weight of the neurons' outputs, 0 for none.
        blend: first part of the steps in which the old activation fades out.
        weighting: of tokens.
        basis: of the inputs.
        first_solve: least squares for down before any step.
        last_solve: after all.
    """

    epochs: int = 5
    batch: int = 512
    rate: float = 0.01
    correction: float = 0.5
    ridge: float = 0.01
    l1: float = 0.0
    blend: float = 0.0
    weighting: str = "stream"
    basis: str = "plain"
    damping: float = 0.01
    first_solve: bool = True
    last_solve: bool = True
    betas: tuple[float, float] = (0.9, 0.99)
    decay: float = 0.0
