"""Greedy or sampled continuation of several prompts at once: weights are read once for all."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from sparseinfer.engine.sampling import Sampling
from sparseinfer.engine.scheduling import Finished, Scheduler, TokenEvent, TokenRequest
from sparseinfer.kernels.decoder.cpu import MAX_ROWS

if TYPE_CHECKING:
    from sparseinfer.engine.model import Model


class _Collected:
    """A sink that keeps token ids."""

    def __init__(self, errors: list[Exception]) -> None:
        self.tokens: list[int] = []
        self._errors = errors

    def prompt(self, logprobs: Sequence[TokenEvent | None]) -> None:
        """Nothing asks for them."""

    def token(self, event: TokenEvent) -> None:
        self.tokens.append(event.token)

    def finished(self, outcome: Finished) -> None:
        """The tokens are there."""

    def failed(self, error: Exception) -> None:
        self._errors.append(error)


def generate_batch(
    model: Model,
    prompts: Sequence[Sequence[int]],
    room: Sequence[int],
    sampling: Sampling,
    stop_ids: Collection[int],
) -> list[list[int]]:
    """Continues each prompt by at most `room` tokens; ids that end a text are not in the result.

    At most `MAX_ROWS` sequences run at a time: when one ends, the next waiting prompt takes its
    place.

    Raises:
        NumericalError: the model computes NaN.
    """
    slots = max(1, min(MAX_ROWS, len(prompts)))
    scheduler = Scheduler(model, slots=slots, stop_ids=stop_ids, prompts_first=True)
    errors: list[Exception] = []
    sinks = [_Collected(errors) for _ in prompts]
    for ids, most, sink in zip(prompts, room, sinks, strict=True):
        scheduler.submit(TokenRequest(tuple(ids), most, sampling), sink)
    while scheduler.step():
        if errors:
            raise errors[0]
    return [sink.tokens for sink in sinks]
