"""Every limit of the server, and the gate that holds the number of requests down."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sparseinfer.serve.errors import ApiError

MAX_STOPS = 16
"""Stop strings of one request; more: 400."""
MAX_STOP_CHARS = 1024
"""Characters of one stop string; more: 400."""
MAX_TEMPERATURE = 2.0
"""OpenAI's own bound; more: 400."""
RETRY_AFTER_SECONDS = 1
"""What `Retry-After` of a 429 says."""


@dataclass(frozen=True)
class Limits:
    """Limits of one server. Text of an answer is bounded by the context, so needs no other one."""

    waiting_requests: int = 64
    """Requests in hand besides the one that decodes (being read, queued, sent); more: 429."""
    body_bytes: int = 4 << 20
    """Size of a request body, with or without Content-Length; more: 413."""
    body_seconds: float = 30.0
    """Time a client may take to send its body; longer: 408."""
    send_seconds: float = 60.0
    """Time a streaming client may go without reading; longer: its request is dropped."""
    drain_seconds: float = 20.0
    """Time requests in hand may take after SIGTERM; what is left then ends with an error (503)."""


class Gate:
    """Counts requests in hand. Lives on the event loop's thread, so needs no lock."""

    def __init__(self, limits: Limits) -> None:
        self._places = limits.waiting_requests + 1
        self._taken = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """Holds a place for one request.

        Raises:
            ApiError: 429 where none is free.
        """
        if self._taken >= self._places:
            raise ApiError(
                429,
                f"the server has {self._taken} requests in hand and takes no more; retry later",
                code="queue_full",
                headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
            )
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1
