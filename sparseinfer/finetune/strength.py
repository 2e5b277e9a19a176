"""Lambda by step, the weight of the neurons' L1 norm: from a schedule, or steered to a sparsity."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Protocol

from sparseinfer.finetune.controller import Controller, ControllerState
from sparseinfer.finetune.schedule import LambdaSchedule

_FIRST, _LOWEST, _HIGHEST = 0.01, 1e-4, 1.0
"""The penalty over the other loss, by the first step's measures: where lambda begins, and its
bounds. Beyond the last the model would forget its language for sparsity."""
_LEAST = 1e-12
"""Losses are taken as at least this."""


class Strength(Protocol):
    """What gives lambda, and is told what came of it; both once a step, in order."""

    def at(self, step: int) -> float:
        """Lambda of a step, from 1."""
        ...

    def observe(self, sparsity: float, language: float, l1: float) -> None:
        """What the step measured.

        Args:
            sparsity: mean neuron sparsity, in [0, 1].
            language: the loss without penalties, nats.
            l1: what lambda is the weight of.
        """
        ...

    def state(self) -> dict[str, Any]:
        """What `restore` needs, of JSON types."""
        ...

    def restore(self, state: dict[str, Any]) -> None: ...


class Scheduled:
    """A function of the step alone."""

    def __init__(self, schedule: LambdaSchedule) -> None:
        self._schedule = schedule

    def at(self, step: int) -> float:
        return self._schedule.at(step)

    def observe(self, sparsity: float, language: float, l1: float) -> None:
        pass

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass


class Steered:
    """What a controller makes of the sparsities so far.

    The first step has no penalty: its losses say what lambda is small, and what is too much. The
    size of neuron outputs differs from model to model by orders of magnitude.
    """

    def __init__(self, target: float, steps: int) -> None:
        """
        Args:
            target: mean neuron sparsity to reach, in (0, 1).
            steps: of the run.
        """
        self._target, self._steps = target, steps
        self._scale: float | None = None
        self._state = self._controller(1.0).begin()

    def at(self, step: int) -> float:  # noqa: ARG002 - its state knows the step
        return 0.0 if self._scale is None else self._state.factor

    def observe(self, sparsity: float, language: float, l1: float) -> None:
        if self._scale is None:
            self._scale = max(language, _LEAST) / max(l1, _LEAST)
            self._state = self._controller(self._scale).begin()
        self._state = self._controller(self._scale).advance(self._state, sparsity)

    def state(self) -> dict[str, Any]:
        return {"scale": self._scale} | asdict(self._state)

    def restore(self, state: dict[str, Any]) -> None:
        rest = dict(state)
        self._scale = rest.pop("scale")
        self._state = ControllerState(**rest)

    def _controller(self, scale: float) -> Controller:
        """
        Args:
            scale: lambda at which the penalty is as large as the other loss.
        """
        return Controller(
            self._target,
            self._steps,
            initial=_FIRST * scale,
            lowest=_LOWEST * scale,
            highest=_HIGHEST * scale,
        )


NONE = Scheduled(LambdaSchedule((0.0,), (0,)))
"""No penalty at any step."""
