"""A closed loop that steers lambda until the mean neuron sparsity is what was asked for.

Every step it reads the sparsity of the step's tokens and changes lambda by a factor. Both sides are
taken as logarithms, because that makes one gain fit all models: trained to the end, density (1 -
sparsity) falls as lambda to the power of about -0.3 to -0.45 (ProSparse, arXiv 2402.13516, Table 5:
two models, ten times lambda, half the density). Knows no model and no tensors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sparseinfer.errors import ConfigError

_PROPORTIONAL = 3.0
"""Change of log lambda for a change of the error: the reciprocal of the exponent above."""
_RESET = 1 / 30
"""Time in which the integral adds as much as the proportional part has, of the run."""
_SHORTEST_RESET = 5
"""Steps: the optimiser's momentum answers no sooner, however short the run."""
_SMOOTHING = 1 / 100
"""Horizon of the moving average of what is measured, of the run."""
_LEAST = 1e-4
"""Densities are taken as at least this: a logarithm of 0 steers nothing."""


@dataclass(frozen=True)
class ControllerState:
    """All that the next step depends on, as numbers that JSON keeps to the bit.

    Attributes:
        step: steps that were measured.
        log_factor: log lambda.
        density: moving average of 1 - sparsity.
        start: the first density that was measured, where the ramp begins.
        error: log(density / wanted) at the step before.
    """

    step: int
    log_factor: float
    density: float
    start: float
    error: float

    @property
    def factor(self) -> float:
        """lambda for the step to come."""
        return math.exp(self.log_factor)


@dataclass(frozen=True)
class Controller:
    """Proportional and integral action on log lambda.

    In place of an integral of its own it changes log lambda step by step (velocity form) and keeps
    it within bounds, so that nothing winds up while lambda is held at a bound.

    Attributes:
        target: mean neuron sparsity to reach, in (0, 1).
        steps: of the run.
        initial: lambda of the first step.
        lowest, highest: bounds of lambda.
        ramp: fraction of the run in which the wanted density goes, on a logarithmic scale, from
            where it began to the target; the rest of the run is for settling.

    Raises:
        ConfigError: a value outside its domain.
    """

    target: float
    steps: int
    initial: float = 1e-3
    lowest: float = 1e-6
    highest: float = 1e2
    ramp: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.target < 1:
            raise ConfigError(f"a target sparsity of {self.target} is outside (0, 1)")
        if self.steps < 1:
            raise ConfigError(f"a run of {self.steps} steps steers nothing")
        if not 0 < self.lowest <= self.initial <= self.highest < math.inf:
            raise ConfigError(
                f"lambda cannot begin at {self.initial} within {self.lowest} to {self.highest}"
            )
        if not 0 <= self.ramp < 1:
            raise ConfigError(f"a ramp over {self.ramp} of the run is outside [0, 1)")

    def begin(self) -> ControllerState:
        """The state before the first step."""
        return ControllerState(0, math.log(self.initial), 1.0, 1.0, 0.0)

    def advance(self, state: ControllerState, sparsity: float) -> ControllerState:
        """The state after one more step.

        Args:
            sparsity: mean neuron sparsity of the step's tokens, in [0, 1].

        Raises:
            ValueError: a sparsity that is none.
        """
        if not 0 <= sparsity <= 1:
            raise ValueError(f"a sparsity of {sparsity} is outside [0, 1]")
        measured = max(1 - sparsity, _LEAST)
        if state.step == 0:
            return ControllerState(1, state.log_factor, measured, measured, 0.0)
        horizon = max(1.0, _SMOOTHING * self.steps)
        density = state.density + (measured - state.density) / horizon
        error = math.log(density / self._wanted(state.step + 1, state.start))
        change = _PROPORTIONAL * (
            error - state.error + error / max(_SHORTEST_RESET, _RESET * self.steps)
        )
        low, high = math.log(self.lowest), math.log(self.highest)
        log_factor = min(max(state.log_factor + change, low), high)
        return ControllerState(state.step + 1, log_factor, density, state.start, error)

    def _wanted(self, step: int, start: float) -> float:
        """The density to have at a step."""
        end = max(1 - self.target, _LEAST)
        share = min(1.0, step / (self.ramp * self.steps)) if self.ramp else 1.0
        return math.exp(math.log(start) + share * (math.log(end) - math.log(start)))
