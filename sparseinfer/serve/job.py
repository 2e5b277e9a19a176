"""One HTTP request's answers as the event loop sees them: text as it comes, and how it ended.

Lives on the event loop's thread alone. What nobody takes is kept: it is bounded by the tokens that
the context leaves, and what has piled up is taken at once, so a slow client costs memory in
proportion to its own answer and delays no one else.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from sparseinfer.engine.scheduling import Finished, Ticket, TokenEvent
from sparseinfer.serve.errors import ApiError, cancelled, engine_error
from sparseinfer.serve.text import AnswerText, Entry, Piece, joined
from sparseinfer.serve.work import Task, Work

FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class End:
    """An answer that came to its end."""

    finish_reason: FinishReason
    completion_tokens: int
    """Tokens generated, an end-of-text token not counted."""
    cached_tokens: int
    """Tokens of the prompt that had been computed before."""


class Observer(ABC):
    """Told what happens to the answers of a request."""

    @abstractmethod
    def token(self, seconds: float | None) -> None:
        """One more token.

        Args:
            seconds: since the one before it in the same answer; None for the first.
        """

    @abstractmethod
    def piece(self, candidate: Candidate, piece: Piece) -> None:
        """An answer goes on."""

    @abstractmethod
    def ended(self, candidate: Candidate) -> None:
        """An answer is over."""


class Candidate:
    """One answer in the making."""

    def __init__(self, number: int, task: Task) -> None:
        self.number = number
        self.task = task
        self.ticket: Ticket | None = None
        """Once the engine has it."""
        self.end: End | None = None
        self.tokens = 0
        self.mean_logprob = 0.0
        """Of its tokens so far."""
        self.has_calls = False
        self.pieces: list[Piece] = []
        """What nobody has taken yet."""
        self.text: AnswerText | None = None
        """From when the engine has it."""
        self.echoed = False
        self.seen_at: float | None = None
        """When its newest token came."""


class Job:
    """The answers of one request.

    Args:
        submit: hands a candidate to the engine; may raise what `Scheduler.submit` does.
        cancel: takes one back.
        at_once: candidates that the engine has at a time. The others wait here, so that a request
            for many answers does not keep others from the engine.
    """

    def __init__(
        self,
        work: Work,
        submit: Callable[[Job, Candidate], Ticket],
        cancel: Callable[[Ticket], None],
        *,
        at_once: int,
        observer: Observer,
    ) -> None:
        self.work = work
        self.candidates = [Candidate(number, task) for number, task in enumerate(work.tasks)]
        self.failure: ApiError | None = None
        self._submit = submit
        self._cancel = cancel
        self._observer = observer
        self._waiting = list(reversed(self.candidates))
        self._left = len(self.candidates)
        self._news: dict[Candidate, None] = {}
        """Candidates that went on since somebody looked, in that order."""
        self._began = asyncio.Event()
        self._changed = asyncio.Event()
        self._over = asyncio.Event()
        for _ in range(min(at_once, len(self.candidates))):
            self._submit_next()

    # What the engine reports. Nothing is heard of a candidate that has ended.

    def prompt(self, candidate: Candidate, logprobs: Sequence[TokenEvent | None]) -> None:
        """The prompt's own log-probabilities."""
        if self._is_over(candidate):
            return
        prompt = candidate.task.prompt
        if prompt.offsets:
            # The first token has none, but is shown.
            events = [
                event or TokenEvent(token)
                for token, event in zip(prompt.ids, logprobs, strict=True)
            ]
            entries = tuple(map(Entry, events, prompt.offsets))
            candidate.echoed = True
            self._add(candidate, Piece(prompt.echo, entries))

    def token(self, candidate: Candidate, event: TokenEvent, at: float) -> None:
        """One more token, which was known at the time `at` (of `time.perf_counter`)."""
        text = candidate.text
        if text is None or self._is_over(candidate):
            return
        seen, candidate.seen_at = candidate.seen_at, at
        self._observer.token(None if seen is None else at - seen)
        candidate.tokens += 1
        if event.logprob is not None:
            candidate.mean_logprob += (event.logprob - candidate.mean_logprob) / candidate.tokens
        self._add(candidate, text.push(event))
        if text.stopped:
            self._close(candidate, text.close(), "stop", cached=None)

    def finished(self, candidate: Candidate, outcome: Finished) -> None:
        """No more tokens."""
        if candidate.text is not None and not self._is_over(candidate):
            rest = candidate.text.close(outcome.end)
            self._close(candidate, rest, outcome.reason, outcome.cached_tokens)

    def failed(self, candidate: Candidate, error: Exception) -> None:
        """The engine could not go on with a candidate, which fails the whole request."""
        if not self._is_over(candidate):
            self.fail(engine_error(error))

    # What the HTTP side does.

    def fail(self, error: ApiError) -> None:
        """Ends what has not ended yet, within one step; the first error counts."""
        if self._left == 0 or self.failure is not None:
            return
        self.failure = error
        for candidate in self.candidates:
            if candidate.end is None:
                self._take_back(candidate)
        self._waiting.clear()
        for event in (self._began, self._changed, self._over):
            event.set()

    def cancel(self) -> None:
        """Ends what nobody waits for."""
        self.fail(cancelled())

    async def began(self) -> None:
        """Waits for the first token, so that an early failure still gets its HTTP status.

        Raises:
            ApiError: the job has failed before it.
        """
        await self._began.wait()
        if self.failure is not None and not any(c.pieces for c in self.candidates):
            raise self.failure

    async def updates(self) -> AsyncIterator[tuple[Candidate, Piece, End | None]]:
        """Candidates as they go on, with their next piece, and how they ended in the last update
        of each, whose piece may be empty.

        Raises:
            ApiError: the job failed; all pieces before the failure have been handed out.
        """
        while True:
            await self._changed.wait()
            self._changed.clear()
            news, self._news = list(self._news), {}
            for candidate in news:
                piece = joined(candidate.pieces)
                candidate.pieces.clear()
                # Read before the one who asked goes on: there may be more by then.
                yield candidate, piece, candidate.end
            if self._changed.is_set():
                continue
            if self.failure is not None:
                raise self.failure
            if self.is_whole:
                return

    async def whole(self) -> list[tuple[Candidate, Piece]]:
        """All candidates, once all have ended.

        Raises:
            ApiError: the job failed.
        """
        await self._over.wait()
        if self.failure is not None:
            raise self.failure
        return [(candidate, joined(candidate.pieces)) for candidate in self.candidates]

    @property
    def is_whole(self) -> bool:
        """Whether all answers came to their end."""
        return self._left == 0

    @property
    def completion_tokens(self) -> int:
        """Of all candidates so far."""
        return sum(candidate.tokens for candidate in self.candidates)

    @property
    def cached_tokens(self) -> int:
        """Of all prompts, each counted once: at its first candidate."""
        first = self.candidates[:: self.work.candidates]
        return sum(candidate.end.cached_tokens for candidate in first if candidate.end)

    def _submit_next(self) -> None:
        if not self._waiting or self.failure is not None:
            return
        candidate = self._waiting.pop()
        try:
            candidate.text = candidate.task.new_text()
            candidate.ticket = self._submit(self, candidate)
        except Exception as error:  # one request must not take others down
            self.fail(engine_error(error))

    def _is_over(self, candidate: Candidate) -> bool:
        return candidate.end is not None or self.failure is not None

    def _add(self, candidate: Candidate, piece: Piece) -> None:
        self._began.set()
        if not candidate.echoed:
            candidate.echoed = True
            piece = joined([Piece(candidate.task.prompt.echo), piece])
        if piece:
            candidate.has_calls = candidate.has_calls or bool(piece.calls)
            candidate.pieces.append(piece)
            self._observer.piece(candidate, piece)
            self._tell(candidate)

    def _close(
        self,
        candidate: Candidate,
        rest: Piece,
        reason: Literal["stop", "length"],
        cached: int | None,
    ) -> None:
        self._add(candidate, rest)
        if cached is None:
            assert candidate.ticket is not None
            cached = candidate.ticket.cached_tokens
            self._take_back(candidate)
        called = candidate.has_calls and reason == "stop"
        candidate.end = End("tool_calls" if called else reason, candidate.tokens, cached)
        self._left -= 1
        self._observer.ended(candidate)
        self._tell(candidate)
        if self._left == 0:
            self._over.set()
        self._submit_next()

    def _tell(self, candidate: Candidate) -> None:
        self._news[candidate] = None
        self._changed.set()

    def _take_back(self, candidate: Candidate) -> None:
        if candidate.ticket is not None:
            self._cancel(candidate.ticket)
