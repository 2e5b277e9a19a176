"""Every limit of the server, and the gate that holds the number of requests down.

What is bounded by the model's context needs no limit of its own: prompts and answers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sparseinfer.errors import ConfigError
from sparseinfer.serve.errors import ApiError

# Of one request; what is beyond: 400.
MAX_STOPS = 16
"""Stop strings."""
MAX_STOP_CHARS = 1024
"""Characters of one stop string."""
MAX_TEMPERATURE = 2.0
"""OpenAI's own bound."""
MAX_PENALTY = 2.0
"""Of presence and frequency, either way; OpenAI's own bound."""
MIN_REPETITION_PENALTY = 0.01
MAX_REPETITION_PENALTY = 10.0
MAX_LOGPROBS = 20
"""Most likely tokens shown for each token; OpenAI's own bound of chats."""
MAX_PROMPT_LOGPROBS = 1 << 21
"""Log-probabilities of all prompts of a request: its own and `logprobs` others for each token. They
come far faster than those of answers, and take up to 300 bytes each until they are sent."""
MAX_LOGIT_BIASES = 1024
"""Tokens with a bias."""
MAX_MESSAGES = 4096
"""Messages of a chat."""
MAX_TOOLS = 128
"""Tools of a chat; OpenAI's own bound."""
MAX_SCHEMA_CHARS = 64 << 10
"""Of a JSON schema of `response_format`, and of all tools together, written as JSON."""
MAX_TEMPLATE_VARIABLES = 16
"""Names in `chat_template_kwargs`."""
MAX_TEMPLATE_STRING = 1024
"""Characters of one of their values."""
MAX_TEMPLATE_NUMBER = 10**6
"""Magnitude of one of their values."""
# Nesting of JSON is bounded by its parser (200 levels), request lines by h11 (64 KiB).

# Of the server itself.
TEMPLATE_SECONDS = 10.0
"""A chat template that runs longer is stopped: 400."""
HEADER_SECONDS = 30.0
"""A connection that sends no whole request header for so long is closed."""
MAX_HEADER_BYTES = 64 << 10
"""Of the header of a request; more: 431."""
MAX_CONNECTIONS = 512
"""Open at a time; more get 503, whatever they ask for."""
REFUSED_CONNECTIONS = 128
"""Open besides these, to be told so; more are closed unheard, so that files can still be opened."""
MAX_WATCHERS = 16
"""Open streams of /v1/sparsity; more: 429."""
RETRY_AFTER_SECONDS = 1
"""What `Retry-After` of a 429 says."""
_LEAST_SECONDS = 0.01


@dataclass(frozen=True)
class Limits:
    """Limits of one server.

    Raises:
        ConfigError: a limit that nothing could stay within, named.
    """

    waiting_requests: int = 64
    """Requests in hand besides one for each slot (being read, queued, sent); more: 429."""
    waiting_sequences: int = 512
    """Answers that requests in hand ask for, finished ones not counted; more: 429."""
    choices: int = 16
    """`n` and `best_of` of one request; more: 400."""
    prompts: int = 128
    """Prompts of one request; more: 400."""
    body_bytes: int = 4 << 20
    """Size of a request body, with or without Content-Length; more: 413."""
    body_seconds: float = 30.0
    """Time a client may take to send its body; longer: 408."""
    request_seconds: float = 3600.0
    """Time from the request's body to the end of its answer; longer: 408, or an error event in a
    stream that has begun."""
    send_seconds: float = 60.0
    """Time a client may take to read what is ready for it (64 KiB); longer: its connection is
    cut."""
    drain_seconds: float = 20.0
    """Time requests in hand may take after SIGTERM; what is left then ends with an error (503)."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            check_limit(name, value, called=f"limit {name}")


def check_limit(name: str, value: float, *, called: str) -> None:
    """
    Args:
        name: of a field of `Limits`.
        called: what the user knows it as.

    Raises:
        ConfigError: nothing could stay within the limit.
    """
    least = 0 if name in ("waiting_requests", "waiting_sequences", "drain_seconds") else 1
    if isinstance(value, float) and name != "drain_seconds":
        least = _LEAST_SECONDS
    if not least <= value < math.inf:
        raise ConfigError(f"{called} is {value}; it must be at least {least} and finite")


class Gate:
    """Counts what is in hand. Lives on the event loop's thread, so needs no lock."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.slots = 1
        """Requests that can be worked on at once; known once the model is loaded."""
        self.requests = 0
        self.sequences = 0

    @contextmanager
    def request(self) -> Iterator[None]:
        """Holds a place for one request.

        Raises:
            ApiError: 429 where none is free.
        """
        if self.requests >= self._limits.waiting_requests + self.slots:
            raise full(f"{self.requests} requests")
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1

    @contextmanager
    def sequences_of(self, count: int) -> Iterator[None]:
        """Holds places for the answers that one request asks for.

        A request alone is never refused, however many it asks for: it would never be served.

        Raises:
            ApiError: 429 where they are too many beside those in hand.
        """
        if self.sequences and self.sequences + count > self._limits.waiting_sequences + self.slots:
            raise full(f"{self.sequences} answers")
        self.sequences += count
        try:
            yield
        finally:
            self.sequences -= count


def full(what: str) -> ApiError:
    """Refuses a request beside `what` that is in hand."""
    return ApiError(
        429,
        f"the server has {what} in hand and takes no more; retry later",
        code="queue_full",
        headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
    )
