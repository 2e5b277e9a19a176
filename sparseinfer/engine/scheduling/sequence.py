"""One request in a slot: which tokens it has, which one comes next, and when it ends."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sparseinfer.engine.parts import Parts
from sparseinfer.engine.passes import Passes
from sparseinfer.engine.sampling import Sampler
from sparseinfer.engine.scheduling.events import events
from sparseinfer.engine.scheduling.mask import allowed_ids
from sparseinfer.engine.scheduling.request import Finished, Ticket, Timings, TokenEvent
from sparseinfer.engine.scheduling.slots import Slot


class Sequence:
    """The state of a request between getting its slot and leaving it.

    Args:
        number: of those in order that got a slot.
        passes: what computes it.
        stop_ids: ids that end a text.
    """

    def __init__(
        self,
        number: int,
        ticket: Ticket,
        slot: Slot,
        passes: Passes,
        stop_ids: Collection[int],
    ) -> None:
        request = ticket.request
        self.ticket = ticket
        self.slot = slot
        self.passes = passes
        self.number = number
        self.token = -1
        """The newest one; the cache ends before it."""
        self.prompt_events: list[TokenEvent | None] | None = (
            None if request.prompt_logprobs is None else [None]
        )
        self._request = request
        self._stop_ids = () if request.ignore_eos else stop_ids
        self._sampler = Sampler(request.sampling, torch.from_numpy(ticket.ids))
        self._parts: Parts[Tensor] | None = None
        self._produced = 0
        self._began = time.perf_counter()
        self._first_at = self._last_at = 0.0

    @property
    def wants_tokens(self) -> bool:
        """Whether anything is to follow the prompt."""
        return self._request.max_tokens > 0

    @property
    def computes_all(self) -> bool:
        """Whether the logits of the whole prompt are wanted, so that nothing can be reused."""
        return self._request.prompt_logprobs is not None

    @property
    def within_chunk(self) -> bool:
        """Whether a chunk of the prompt is begun and not finished."""
        return self._parts is not None

    def compute(self, chunk: int, until: float) -> bool:
        """Computes the next chunk of the prompt, or goes on with it, as far as it comes until a
        time (of `time.perf_counter`); says whether the chunk is finished.

        Args:
            chunk: most tokens of a chunk.

        Raises:
            NumericalError: the model computed NaN where log-probabilities are wanted.
        """
        if self._parts is None:
            begin = self.slot.stored
            ids = torch.from_numpy(self.ticket.ids[begin : begin + chunk])
            cache = self.slot.cache
            self._parts = self.passes.prompt_parts(ids, cache, all_logits=self.computes_all)
        while True:
            try:
                piece = next(self._parts)
            except StopIteration as done:
                self._parts = None
                self._take_logits(done.value)
                self.slot.add(done.value[0])
                return True
            if piece is not None:
                self._take_logits(piece)
                del piece  # else there would be two of them
            if time.perf_counter() >= until:
                return False

    def _take_logits(self, logits: Tensor) -> None:
        """Takes the logits [., V] of the next positions of the prompt: what they say of the tokens
        behind them is noted where it is wanted."""
        if self.prompt_events is not None:
            begin = len(self.prompt_events)
            following = torch.from_numpy(self.ticket.ids[begin : begin + len(logits)])
            top = self._request.prompt_logprobs or 0
            self.prompt_events += events(logits[: len(following)], following, top)

    def computes_for(self, other: Sequence, chunk: int) -> bool:
        """Whether the next chunk that this one computes is what the other one needs next."""
        slot, ids, theirs = self.slot, self.ticket.ids, other.ticket.ids
        begin, end = slot.stored, slot.stored + chunk
        if self.number > other.number or self.passes is not other.passes:
            return False
        if other.slot.stored != begin:
            return False
        if end < len(theirs):
            return np.array_equal(ids[:end], theirs[:end])
        return np.array_equal(ids, theirs)  # the logits behind all of it are needed too

    def take(self, logits: Tensor) -> tuple[TokenEvent | None, Finished | None]:
        """Chooses the token behind logits [V].

        Returns:
            the token, unless it ended the text; and how the request ended, if it did.

        Raises:
            NumericalError: the model computed NaN.
            ConfigError: the mask and the biases leave nothing to choose.
            Exception: whatever the mask raises.
        """
        mask = self._request.mask
        allowed = None if mask is None else allowed_ids(mask.allowed(), len(logits))
        token = self._sampler(logits, allowed)
        event = TokenEvent(token)
        if self._request.logprobs is not None:
            (event,) = events(logits[None], torch.tensor([token]), self._request.logprobs)
        self._last_at = time.perf_counter()
        self._first_at = self._first_at or self._last_at
        if token in self._stop_ids:
            return None, self.finished("stop", event)
        self.token = token
        self._produced += 1
        if mask is not None:
            mask.accept(token)
            if mask.finished:
                return event, self.finished("stop")
        if self._produced == self._request.max_tokens:
            return event, self.finished("length")
        return event, None

    def finished(
        self, reason: Literal["stop", "length"], end: TokenEvent | None = None
    ) -> Finished:
        """How the request ends now.

        Args:
            end: the token that ended the text.
        """
        first = self._first_at or time.perf_counter()
        return Finished(
            reason,
            prompt_tokens=len(self.ticket.ids),
            completion_tokens=self._produced,
            cached_tokens=self.ticket.cached_tokens,
            timings=Timings(
                queued=self._began - self.ticket.submitted_at,
                prefill=first - self._began,
                decode=max(self._last_at - first, 0.0),
            ),
            end=end if self._request.logprobs is not None else None,
        )
