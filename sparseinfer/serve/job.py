"""One generation as the event loop sees it: text as it comes, how it ended, and how to end it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Literal

from sparseinfer.engine import Sampling
from sparseinfer.serve.errors import ApiError, cancelled

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Work:
    """What the engine is asked to do; `ids` and `max_tokens` fit the model's context."""

    ids: tuple[int, ...]
    max_tokens: int
    sampling: Sampling
    stops: tuple[str, ...]


@dataclass(frozen=True)
class End:
    """A generation that came to its end."""

    finish_reason: FinishReason
    completion_tokens: int
    """Tokens generated, an end-of-text token not counted."""


class Job:
    """Hands text from the engine's thread to the event loop.

    All state but `ended` is touched on the event loop's thread alone. Text that nobody takes is
    kept: it is bounded by the tokens that the context leaves, and what has piled up is taken at
    once, so a slow client costs memory in proportion to its own answer and delays no one else.
    """

    def __init__(self, work: Work) -> None:
        self.work = work
        self.ended = False
        """Read by the engine's thread after every token, to stop working for nobody."""
        self._loop = asyncio.get_running_loop()
        self._texts: list[str] = []
        self._outcome: End | ApiError | None = None
        self._began = asyncio.Event()
        self._changed = asyncio.Event()

    # Called by the engine's thread.

    def add(self, text: str) -> None:
        """One more token, with the text (perhaps none) that it completes."""
        self._on_loop(lambda: self._add(text))

    def finish(self, outcome: End | ApiError) -> None:
        """No more will come."""
        self._on_loop(lambda: self.end(outcome))

    # Called on the event loop.

    def end(self, outcome: End | ApiError) -> None:
        """Ends the job, at the latest after the token in work; the first outcome counts."""
        self.ended = True
        if self._outcome is None:
            self._outcome = outcome
        self._began.set()
        self._changed.set()

    def cancel(self) -> None:
        """Ends a job that nobody waits for."""
        self.end(cancelled())

    async def began(self) -> None:
        """Waits for the first token, so that an early failure still gets its HTTP status.

        Raises:
            ApiError: the job has failed before it.
        """
        await self._began.wait()
        if isinstance(self._outcome, ApiError):
            raise self._outcome

    async def texts(self) -> AsyncIterator[str]:
        """Pieces of text, never empty, as they come.

        Raises:
            ApiError: the job failed; all text before the failure has been handed out.
        """
        while True:
            await self._changed.wait()
            self._changed.clear()
            text = "".join(self._texts)
            self._texts.clear()
            if text:
                yield text
            if self._outcome is not None and not self._texts:
                if isinstance(self._outcome, ApiError):
                    raise self._outcome
                return

    @property
    def result(self) -> End:
        """How the generation ended, once `texts` is exhausted."""
        assert isinstance(self._outcome, End)
        return self._outcome

    def _add(self, text: str) -> None:
        if self._outcome is not None:
            return
        self._began.set()
        if text:
            self._texts.append(text)
            self._changed.set()

    def _on_loop(self, call: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError:
            # The loop is closed: the server stopped without waiting for this job.
            self.ended = True
