"""Continuous batching: which tokens are computed next, for many requests on one model."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch

from sparseinfer.engine import passes as passes_module
from sparseinfer.engine.passes import Passes
from sparseinfer.engine.scheduling.check import checked_request
from sparseinfer.engine.scheduling.figures import Figures, Reads
from sparseinfer.engine.scheduling.prompts import Prompts
from sparseinfer.engine.scheduling.request import Finished, Sink, Ticket, TokenRequest
from sparseinfer.engine.scheduling.sampled import SampledSteps
from sparseinfer.engine.scheduling.sequence import Sequence
from sparseinfer.engine.scheduling.slots import Slots
from sparseinfer.engine.scheduling.state import SchedulerState
from sparseinfer.engine.settings import is_count
from sparseinfer.engine.torch_threads import torch_threads
from sparseinfer.errors import ConfigError
from sparseinfer.kernels.decoder.cpu import MAX_ROWS

if TYPE_CHECKING:
    from sparseinfer.engine.model import Model

logger = logging.getLogger("sparseinfer")

SLICE_SECONDS = 0.1
"""Longest part of a prompt between two decode steps, where these take less time themselves."""


class Scheduler:
    """Serves requests on one model, first come, first served, `slots` at a time.

    What a request gets depends on itself alone: to the bit what `Model.generate` gives for it,
    whatever runs beside it and whatever of its prompt was computed before.

    `step` belongs to one thread, which alone may use the model, and nobody may change the model's
    rules; `check`, `submit`, `cancel` and `snapshot` may be called from any thread.
    """

    def __init__(
        self,
        model: Model,
        *,
        slots: int,
        chunk_tokens: int | None = None,
        stop_ids: Collection[int] | None = None,
        prompts_first: bool = False,
        slice_seconds: float | None = None,
        sample_recall: int | None = None,
    ) -> None:
        """
        Args:
            slots: requests that are computed at the same time. Each slot keeps its cache (see
                `engine.cache.kv_bytes`), and the logits of one position.
            chunk_tokens: tokens of a prompt that are computed at once; other than the default
                gives other bits than `Model.generate`.
            stop_ids: ids that end texts; default is the model's.
            prompts_first: a step computes all prompts that have a slot before it decodes: all of
                a set is done sooner, but each waits longer for the others.
            slice_seconds: after this time, or after as long as the last decode step took, a step
                leaves the rest of a chunk to the next one; default is `SLICE_SECONDS`.
            sample_recall: measure in every so many decode steps what the model's predictor loses:
                such a step reads all gates besides. Default is never.

        Raises:
            ConfigError: slots, chunk_tokens or sample_recall below 1, or the latter of a model
                without a predictor.
            UnsupportedError: sample_recall of a model on a GPU.
        """
        chunk = passes_module.CHUNK_TOKENS if chunk_tokens is None else chunk_tokens
        for name, value in (("slots", slots), ("chunk_tokens", chunk)):
            if not is_count(value):
                raise ConfigError(f"{name} {value!r} is not a positive whole number")
        self._model = model
        self._count = slots
        self._chunk = chunk
        self._stop_ids = frozenset(model.stop_ids if stop_ids is None else stop_ids)
        self._prompts_first = prompts_first
        self._slice_seconds = SLICE_SECONDS if slice_seconds is None else slice_seconds
        self._sampled = SampledSteps(model, sample_recall)
        self._decode_seconds = 0.0
        """What the last decode step took."""
        self._slots = Slots(slots, chunk)
        self._figures = Figures()
        self._prompts = Prompts(self._slots, chunk, self._figures, self._fail)
        self._running: list[Sequence] = []
        """Requests that have their prompts behind them."""
        self._admitted = 0
        self._lock = threading.Lock()
        """Guards what follows."""
        self._waiting: deque[Ticket] = deque()
        self._waiting_cancelled = 0
        self._published = Figures()
        self._reads = Reads(model.passes())
        self._recall = self._sampled.recall

    def check(self, request: TokenRequest) -> None:
        """Whether the model can take a request; `submit` checks too.

        Raises:
            PromptError: an empty prompt, an id outside the vocabulary, or more than the context
                holds.
            ConfigError: max_tokens, logprobs or a biased id outside their domains.
            UnsupportedError: `dense` of a model whose activations are 0 by themselves.
        """
        checked_request(request, self._model)

    def submit(self, request: TokenRequest, sink: Sink) -> Ticket:
        """Queues a request.

        Raises:
            PromptError, ConfigError, UnsupportedError: as `check`.
        """
        ticket = Ticket(request, checked_request(request, self._model), sink)
        with self._lock:
            self._waiting.append(ticket)
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Ends a request within one step; its sink hears no more than what is being delivered now.
        One that has ended is left alone."""
        with self._lock:
            ticket.cancelled = True
            if ticket in self._waiting:
                self._waiting.remove(ticket)
                self._waiting_cancelled += 1

    def step(self) -> bool:
        """One unit of work: one chunk of one prompt, or the part of it that a slice of time holds,
        and one token for every request that has its prompt behind it. False where there was nothing
        to do."""
        with torch_threads(1), torch.inference_mode():
            self._drop_cancelled()
            self._admit()
            worked = self._prefill()
            worked = self._decode() or worked
        self._publish()
        return worked

    def snapshot(self) -> SchedulerState:
        """How things stood after the last step."""
        with self._lock:
            figures = asdict(self._published)
            figures["cancelled"] += self._waiting_cancelled
            waiting = len(self._waiting)
            reads, counted = self._reads, self._reads.passes.counted
            prefill, decode, recent = reads.prefill, reads.decode, reads.recent
            recall = self._recall
        return SchedulerState(
            slots=self._count,
            waiting=waiting,
            prefill=counted(prefill),
            decode=counted(decode),
            recent=counted(recent),
            recall=recall,
            **figures,
        )

    def _publish(self) -> None:
        self._figures.prefilling, self._figures.decoding = len(self._prompts), len(self._running)
        with self._lock:
            self._published = replace(self._figures)
            self._reads.update()
            self._recall = self._sampled.recall

    def _drop_cancelled(self) -> None:
        for one in [*self._prompts, *self._running]:
            if one.ticket.cancelled:
                self._leave(one, "cancelled")

    def _admit(self) -> None:
        """Gives free slots to waiting requests."""
        while self._slots.any_free:
            with self._lock:
                if not self._waiting:
                    return
                ticket = self._waiting.popleft()
            request = ticket.request
            try:
                passes = self._model.passes(dense=request.dense)
                reuse = request.prompt_logprobs is None
                slot = self._slots.take(ticket.ids, passes, reuse=reuse)
            except Exception as error:  # no memory for a cache, or for the dense model's handle
                self._figures.failed += 1
                _tell(ticket, partial(ticket.sink.failed, error))
                continue
            self._admitted += 1
            one = Sequence(self._admitted, ticket, slot, passes, self._stop_ids)
            self._prompts.add(one)

    def _prefill(self) -> bool:
        """Computes a chunk of a prompt, or a part of it; says whether there was one."""
        slice_seconds = max(self._slice_seconds, self._decode_seconds)
        until = math.inf if self._prompts_first else time.perf_counter() + slice_seconds
        worked = False
        while (one := self._prompts.next()) is not None:
            worked = True
            reused = one.slot.logits is not None
            finished = reused or self._prompts.compute(one, until)
            if one.slot.logits is not None:
                self._start(one, one.slot.logits)
            if not finished or not (reused or self._prompts_first):
                break
        return worked

    def _start(self, one: Sequence, logits: torch.Tensor) -> None:
        """Begins to decode behind a prompt with these logits [V]."""
        self._running.append(one)
        if one.prompt_events is not None:
            _tell(one.ticket, partial(one.ticket.sink.prompt, one.prompt_events))
            one.prompt_events = None
        if one.wants_tokens:
            self._advance(one, logits)
        else:
            self._finish(one, one.finished("length"))

    def _decode(self) -> bool:
        """One token for each request that has its prompt behind it; says whether there was any."""
        running = list(self._running)
        began = time.perf_counter()
        for passes, group in _groups(running):
            try:
                logits = passes.step(
                    [one.token for one in group],
                    [one.slot.cache for one in group],
                    self._sampled.next(passes),
                )
            except Exception as error:  # whose fault it is cannot be known
                for one in group:
                    self._fail(one, error)
                continue
            for one, row in zip(group, logits, strict=True):
                self._advance(one, row)
        self._decode_seconds = time.perf_counter() - began
        return bool(running)

    def _advance(self, one: Sequence, logits: torch.Tensor) -> None:
        """Chooses and delivers the token behind logits [V]."""
        try:
            event, outcome = one.take(logits)
        except Exception as error:  # NaN, or whatever a mask raises: fails this request alone
            self._fail(one, error)
            return
        ticket = one.ticket
        if event is not None:
            self._figures.completion_tokens += 1
            _tell(ticket, partial(ticket.sink.token, event))
        if ticket.cancelled:
            self._leave(one, "cancelled")
        elif outcome is not None:
            self._finish(one, outcome)

    def _finish(self, one: Sequence, outcome: Finished) -> None:
        self._leave(one, "finished")
        _tell(one.ticket, partial(one.ticket.sink.finished, outcome))

    def _fail(self, one: Sequence, error: Exception) -> None:
        self._leave(one, "failed", keep=False)
        _tell(one.ticket, partial(one.ticket.sink.failed, error))

    def _leave(
        self, one: Sequence, how: Literal["finished", "failed", "cancelled"], *, keep: bool = True
    ) -> None:
        """Frees a request's slot, whichever queue it is in."""
        if one in self._running:
            self._running.remove(one)
        elif one in self._prompts:
            self._prompts.remove(one)
        self._slots.release(one.slot, keep=keep)
        setattr(self._figures, how, getattr(self._figures, how) + 1)


def _groups(running: list[Sequence]) -> Iterator[tuple[Passes, list[Sequence]]]:
    """Requests that one native step can take."""
    for passes in dict.fromkeys(one.passes for one in running):
        same = [one for one in running if one.passes is passes]
        for begin in range(0, len(same), MAX_ROWS):
            yield passes, same[begin : begin + MAX_ROWS]


def _tell(ticket: Ticket, call: Callable[[], None]) -> None:
    """Calls a sink, unless its request was cancelled."""
    if ticket.cancelled:
        return
    try:
        call()
    except Exception:
        logger.exception("a request is cancelled: its sink failed")
        ticket.cancelled = True
