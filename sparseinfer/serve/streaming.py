"""Server-sent events of one job."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable

import anyio
from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from sparseinfer.serve.answers import Answer, Json
from sparseinfer.serve.errors import ApiError
from sparseinfer.serve.job import Job

logger = logging.getLogger("sparseinfer")


async def events(job: Job, answer: Answer) -> AsyncIterator[bytes]:
    """The events of a whole response. A failure comes as an error event, and then nothing."""
    for chunk in answer.opening():
        yield _event(chunk)
    try:
        async for text in job.texts():
            yield _event(answer.piece(text))
    except ApiError as error:
        yield _event(error.body())
        return
    for chunk in answer.closing(job.result):
        yield _event(chunk)
    yield b"data: [DONE]\n\n"


class EventStream(StreamingResponse):
    """Sends events; gives up on a client that does not read, and always tells when it is over."""

    def __init__(
        self, content: AsyncIterator[bytes], *, send_seconds: float, on_close: Callable[[], None]
    ) -> None:
        super().__init__(
            content,
            media_type="text/event-stream",
            # Else nginx collects the events.
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )
        self._send_seconds = send_seconds
        self._on_close = on_close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_close()

    async def stream_response(self, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            with anyio.fail_after(self._send_seconds):
                await send(message)

        try:
            await super().stream_response(send_in_time)
        except TimeoutError:
            # Leaving the response incomplete makes the server close the connection.
            logger.warning("a client read nothing for %g seconds; dropped it", self._send_seconds)


def _event(data: Json) -> bytes:
    # All ASCII: some clients take U+2028 and its like for the end of a line.
    return b"data: " + json.dumps(data, ensure_ascii=True).encode() + b"\n\n"
