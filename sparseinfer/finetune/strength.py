"""Lambda by step, the weight of the neurons' L1 norm: from a schedule, or steered to a sparsity."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Protocol

from sparseinfer.finetune.controller import Controller, ControllerState
from sparseinfer.finetune.schedule import LambdaSchedule


class Strength(Protocol):
    """What gives lambda, and is told what came of it; both once a step, in order."""

    def at(self, step: int) -> float:
        """Lambda of a step, from 1."""
        ...

    def observe(self, sparsity: float) -> None:
        """Mean neuron sparsity, in [0, 1], of the step."""
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

    def observe(self, sparsity: float) -> None:
        pass

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass


class Steered:
    """What a controller makes of the sparsities so far."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._state = controller.begin()

    def at(self, step: int) -> float:  # noqa: ARG002 - its state knows the step
        return self._state.factor

    def observe(self, sparsity: float) -> None:
        self._state = self._controller.advance(self._state, sparsity)

    def state(self) -> dict[str, Any]:
        return asdict(self._state)

    def restore(self, state: dict[str, Any]) -> None:
        self._state = ControllerState(**state)


NONE = Scheduled(LambdaSchedule((0.0,), (0,)))
"""No penalty at any step."""
