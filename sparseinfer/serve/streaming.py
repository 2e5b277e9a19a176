"""Server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from sparseinfer.serve.answers import Answer, Json, Usage
from sparseinfer.serve.errors import ApiError
from sparseinfer.serve.job import Job

KEEP_ALIVE = b": \n\n"
"""A comment, which clients pass over, and which keeps proxies from closing the connection."""


async def answer_events(job: Job, answer: Answer) -> AsyncIterator[bytes]:
    """The events of a whole response. A failure comes as an error event, and then nothing."""
    for chunk in answer.opening(len(job.candidates)):
        yield event(chunk)
    try:
        async for candidate, piece, end in job.updates():
            if piece:
                yield event(answer.piece(candidate.number, piece))
            if end is not None:
                yield event(answer.closing(candidate.number, end))
    except ApiError as error:
        yield event(error.body())
        return
    for chunk in answer.usage(Usage.of(job)):
        yield event(chunk)
    yield b"data: [DONE]\n\n"


class EventStream(StreamingResponse):
    """Sends events, and always tells when it is over."""

    def __init__(
        self, content: AsyncIterator[bytes], *, on_close: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(
            content,
            media_type="text/event-stream",
            # Else nginx collects the events.
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )
        self._on_close = on_close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_close()


def event(data: Json) -> bytes:
    """One event."""
    # All ASCII: some clients take U+2028 and its like for the end of a line.
    return b"data: " + json.dumps(data, ensure_ascii=True).encode() + b"\n\n"
