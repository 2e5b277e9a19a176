"""GET /v1/sparsity: how things are, or a stream of how they become."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from sparseinfer.serve.errors import ApiError
from sparseinfer.serve.limits import MAX_WATCHERS, full
from sparseinfer.serve.live import sparsity_report
from sparseinfer.serve.served import Served
from sparseinfer.serve.service import Service
from sparseinfer.serve.streaming import KEEP_ALIVE, EventStream, event

_PERIOD = 0.25
"""Seconds between two events."""
_QUIET_PERIODS = 60
"""Periods without an event after which a comment is sent."""


def sparsity_response(http: Request, service: Service) -> Response:
    """
    Raises:
        ApiError: 400 for another parameter than `stream`, 429 for too many streams, 503 where there
            is no model.
    """
    served = service.served
    wants = {"true": True, "false": False, None: False}
    given = http.query_params.getlist("stream")
    asked = given[0] if given else None
    if asked not in wants or len(given) > 1:
        raise ApiError(400, "stream: should be true or false", param="stream")
    for name in http.query_params:
        if name != "stream":
            raise ApiError(400, f"{name[:100]}: unknown parameter", param=name[:100])
    if not wants[asked]:
        state = served.scheduler.snapshot()
        return JSONResponse(sparsity_report(served.name, served.facts, state.recent, state.recall))
    if service.watchers >= MAX_WATCHERS:
        raise full(f"{service.watchers} streams of /v1/sparsity")
    service.watchers += 1
    return EventStream(_events(served, service), on_close=service.unwatch)


async def _events(served: Served, service: Service) -> AsyncIterator[bytes]:
    """An event for every period in which something was decoded, about the tokens of that period."""
    yield KEEP_ALIVE
    before, quiet = served.scheduler.snapshot().decode, 0
    while not service.draining:
        await asyncio.sleep(_PERIOD)
        state = served.scheduler.snapshot()
        now = state.decode
        if now.tokens > before.tokens:
            yield event(sparsity_report(served.name, served.facts, now - before, state.recall))
            quiet = 0
        elif (quiet := quiet + 1) % _QUIET_PERIODS == 0:
            yield KEEP_ALIVE
        before = now
    yield b"data: [DONE]\n\n"
