"""Requests, and sinks that remember."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sparseinfer.engine import Model
from sparseinfer.engine.scheduling import (
    Finished,
    Scheduler,
    Ticket,
    TokenEvent,
    TokenRequest,
)


class Heard:
    """Everything that a sink was told; calls `on_token` (if set) with each event."""

    def __init__(self) -> None:
        self.events: list[TokenEvent] = []
        self.prompts: list[list[TokenEvent | None]] = []
        self.outcomes: list[Finished] = []
        self.errors: list[Exception] = []
        self.on_token = lambda event: None

    def prompt(self, logprobs: Sequence[TokenEvent | None]) -> None:
        assert not self.events, "before the first token"
        self.prompts.append(list(logprobs))

    def token(self, event: TokenEvent) -> None:
        assert not self.is_over
        self.events.append(event)
        self.on_token(event)

    def finished(self, outcome: Finished) -> None:
        assert not self.is_over
        self.outcomes.append(outcome)

    def failed(self, error: Exception) -> None:
        assert not self.is_over
        self.errors.append(error)

    @property
    def is_over(self) -> bool:
        return bool(self.outcomes or self.errors)

    @property
    def tokens(self) -> list[int]:
        return [event.token for event in self.events]

    @property
    def outcome(self) -> Finished:
        (outcome,) = self.outcomes
        return outcome


def request(ids: Sequence[int], max_tokens: int = 5, **options: Any) -> TokenRequest:
    """One that goes on behind ids that end texts, unless told otherwise."""
    return TokenRequest(tuple(ids), max_tokens, **{"ignore_eos": True, **options})


def submit(scheduler: Scheduler, *requests: TokenRequest) -> list[tuple[Heard, Ticket]]:
    made = []
    for one in requests:
        heard = Heard()
        made.append((heard, scheduler.submit(one, heard)))
    return made


def drain(scheduler: Scheduler, most: int = 2000) -> int:
    """Steps until there is nothing to do; how many."""
    for steps in range(most):
        if not scheduler.step():
            return steps
    raise AssertionError("it does not come to an end")


def serve(scheduler: Scheduler, *requests: TokenRequest) -> list[Heard]:
    """What each of some requests that came together was told."""
    made = submit(scheduler, *requests)
    drain(scheduler)
    return [heard for heard, _ in made]


def alone(model: Model, one: TokenRequest) -> list[int]:
    """What `Model.generate` gives for a request."""
    stops = () if one.ignore_eos else None
    return list(
        model.generate(one.ids, max_tokens=one.max_tokens, sampling=one.sampling, stop_ids=stops)
    )
