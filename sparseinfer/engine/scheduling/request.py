"""What is asked of the scheduler, and what it answers. Token ids only."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from sparseinfer.engine.sampling import GREEDY, Sampling

MAX_TOP_LOGPROBS = 20
"""Most likely tokens that one position can list."""


class TokenMask(Protocol):
    """Constrained decoding of one request. Called on the engine's thread alone; what it raises
    fails its own request only."""

    def allowed(self) -> np.ndarray | None:
        """Which token ids may come next; None: all.

        Either bool [n], or a bitmask of whole numbers, 8 ids a byte, the lowest bit first. Ids
        beyond its end are not allowed. An id that ends texts is allowed where its own bit says so.
        """
        ...

    def accept(self, token: int) -> None:
        """Takes note of the token that was chosen; never of one that ended the text."""
        ...

    @property
    def finished(self) -> bool:
        """Whether the text is complete: nothing may follow. Asked after every `accept`."""
        ...


@dataclass(frozen=True)
class TokenRequest:
    """A prompt to continue. `Scheduler.check` says whether a model can take it."""

    ids: tuple[int, ...]
    """The prompt, at least one token."""
    max_tokens: int
    """Most tokens to produce, at least 1; 0 only where `prompt_logprobs` is set. With the prompt
    it must fit the context."""
    sampling: Sampling = GREEDY
    ignore_eos: bool = False
    """Go on behind ids that end texts, which are then tokens like others."""
    logprobs: int | None = None
    """Log-probabilities of each token, and of so many most likely ones (0 to
    `MAX_TOP_LOGPROBS`); None: neither."""
    prompt_logprobs: int | None = None
    """The same of the prompt's tokens. All of the prompt is then computed anew."""
    mask: TokenMask | None = None
    """What the text must obey; None: nothing. A mask serves one request."""
    dense: bool = False
    """Compute all neurons: without the thresholds of a converted model."""


@dataclass(frozen=True)
class TokenEvent:
    """One token, with what was asked for about it.

    Log-probabilities (natural) are of the model's own distribution: before masks, penalties,
    temperature and filters.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    """(id, log-probability) of the most likely tokens, best first."""


@dataclass(frozen=True)
class Timings:
    """Seconds that a request took."""

    queued: float
    """Until a slot was free."""
    prefill: float
    """From then until the first token was known; waits for other requests included."""
    decode: float
    """From the first token to the last."""


@dataclass(frozen=True)
class Finished:
    """How a request came to its end."""

    reason: Literal["stop", "length"]
    """`stop`: an id that ends texts, or a mask that is complete; `length`: max_tokens."""
    prompt_tokens: int
    completion_tokens: int
    """Tokens produced; an id that ended the text is not counted."""
    cached_tokens: int
    """Tokens of the prompt that were taken from earlier or simultaneous requests."""
    timings: Timings
    end: TokenEvent | None = None
    """The id that ended the text, where log-probabilities were asked for."""


class Sink(Protocol):
    """Takes what a request produces. Called on the thread that calls `Scheduler.step`, so it must
    be quick. `finished` or `failed` comes once and last, unless the request is cancelled: then
    nothing comes any more. What a sink raises is logged and cancels its own request only."""

    def prompt(self, logprobs: Sequence[TokenEvent | None]) -> None:
        """Where `prompt_logprobs` is set, once, before the first token: one entry for each token
        of the prompt, None for the first."""
        ...

    def token(self, event: TokenEvent) -> None: ...

    def finished(self, outcome: Finished) -> None: ...

    def failed(self, error: Exception) -> None:
        """NumericalError: the model computed NaN; MemoryError; or what a mask raised."""
        ...


class Ticket:
    """A request in the scheduler's hands: what `Scheduler.cancel` takes.

    Args:
        ids: int64 [T], the request's prompt.
    """

    def __init__(self, request: TokenRequest, ids: np.ndarray, sink: Sink) -> None:
        self.request = request
        self.ids = ids
        self.sink = sink
        self.submitted_at = time.perf_counter()
        self.cancelled = False
        self.cached_tokens = 0
        """Tokens of the prompt that need not be computed; final once the first token is known."""
