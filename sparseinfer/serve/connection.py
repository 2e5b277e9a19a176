"""One client connection: uvicorn's own, which also gives up on clients that hold it for nothing,
and refuses what is no HTTP, or more than one thing, in the API's own words."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import h11
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from sparseinfer.serve.errors import ApiError
from sparseinfer.serve.limits import (
    HEADER_SECONDS,
    MAX_CONNECTIONS,
    MAX_HEADER_BYTES,
    REFUSED_CONNECTIONS,
    RETRY_AFTER_SECONDS,
    Limits,
)

logger = logging.getLogger("sparseinfer")

_CLOSE = {"Connection": "close"}


class _Timer:
    """Calls something unless stopped in time."""

    def __init__(self, seconds: float, call: Callable[[], None]) -> None:
        self._seconds = seconds
        self._call = call
        self._handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self.stop()
        self._handle = asyncio.get_running_loop().call_later(self._seconds, self._call)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None


class Connection(H11Protocol):
    """uvicorn has no limit on the time that a request's header may take, nor on the time that a
    client takes to read. It answers what is no HTTP as plain text, and fails where an answer has
    begun."""

    send_seconds: float = Limits.send_seconds

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.app = _Door(self, self.app)  # pyright: ignore[reportAttributeAccessIssue]
        self.header = _Timer(HEADER_SECONDS, self._abort)
        self._reading = _Timer(self.send_seconds, self._drop)

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS + REFUSED_CONNECTIONS:
            self._abort()
        else:
            self.header.start()

    def connection_lost(self, exc: Exception | None) -> None:
        self.header.stop()
        self._reading.stop()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.header.start()

    def pause_writing(self) -> None:
        self._reading.start()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._reading.stop()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Refuses what h11 could not read; whatever follows cannot be understood either."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = bytes(ApiError(400, msg).response().body)
            headers = [
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(body))),
                ("Connection", "close"),
            ]
            answer = (
                h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
                h11.Data(data=body),
                h11.EndOfMessage(),
            )
            self.transport.write(b"".join(self.conn.send(part) or b"" for part in answer))
        self.transport.close()

    def _should_upgrade(self) -> bool:
        # Other protocols may be left alone (RFC 9110, 7.8); uvicorn would warn each time.
        return False

    def _drop(self) -> None:
        logger.warning("a client read nothing for %g seconds; dropped it", self.send_seconds)
        self._abort()

    def _abort(self) -> None:
        # Closing would wait until all that was written is read.
        self.transport.abort()


class _Door:
    """The application, as one connection sees it."""

    def __init__(self, connection: Connection, app: ASGIApp) -> None:
        self._connection = connection
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._connection.header.stop()
        refused = self._refusal(scope["headers"])
        if refused is None:
            await self._app(scope, receive, send)
        else:
            await refused.response()(scope, receive, send)

    def _refusal(self, headers: list[tuple[bytes, bytes]]) -> ApiError | None:
        """Why a request is not even looked at."""
        if len(self._connection.connections) > MAX_CONNECTIONS:
            return ApiError(
                503,
                f"more than {MAX_CONNECTIONS} connections are open; retry later",
                code="too_many_connections",
                headers={"Retry-After": str(RETRY_AFTER_SECONDS), **_CLOSE},
            )
        # h11 counts only what it has not made out yet, so more may come through at once.
        if sum(len(name) + len(value) for name, value in headers) > MAX_HEADER_BYTES:
            return ApiError(
                431, f"the header is larger than {MAX_HEADER_BYTES} bytes", headers=_CLOSE
            )
        names = {name for name, _ in headers}
        # A proxy may see another end of the body, and take the rest for another client's request.
        if {b"content-length", b"transfer-encoding"} <= names:
            return ApiError(
                400, "send Content-Length or Transfer-Encoding, not both", headers=_CLOSE
            )
        return None


def connection_class(limits: Limits) -> type[Connection]:
    """The class to give to uvicorn."""
    return type("LimitedConnection", (Connection,), {"send_seconds": limits.send_seconds})
