"""Listens, logs where, and shuts down in order."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from sparseinfer.errors import ConfigError
from sparseinfer.serve.app import Service

logger = logging.getLogger("sparseinfer")

_LAST_RESORT_SECONDS = 5
"""After the requests in hand were told to end, before their connections are cut."""


def run_server(
    app: FastAPI,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serves an app of `create_app` until SIGINT or SIGTERM, then returns.

    Requests in hand may finish within `Limits.drain_seconds`; the rest end with an error. Logs one
    line to the logger `sparseinfer` when ready and prints nothing; `on_ready` then gets the URL.

    Raises:
        ConfigError: the address cannot be listened on (port in use, unknown host, no permission).
    """
    Server(app, host, port, on_ready=on_ready).run()


class Server(uvicorn.Server):
    """Serves one app. The socket is open from construction on, so `port` is known (0: any free).

    Raises:
        ConfigError: as `run_server`.
    """

    def __init__(
        self,
        app: FastAPI,
        host: str = "127.0.0.1",
        port: int = 8000,
        *,
        on_ready: Callable[[str], None] | None = None,
    ) -> None:
        self._on_ready = on_ready
        self._service: Service = app.state.service
        self._socket = _listen(host, port)
        self.host = host
        self.port: int = self._socket.getsockname()[1]
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",
                loop="asyncio",
                ws="none",
                lifespan="on",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=int(
                    self._service.limits.drain_seconds + _LAST_RESORT_SECONDS
                ),
            )
        )

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serves until a signal (in the main thread) or `stop`."""
        with self._replayed_signals():
            super().run(sockets or [self._socket])

    def stop(self) -> None:
        """Shuts down as SIGTERM does; callable from any thread."""
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            host = f"[{self.host}]" if ":" in self.host else self.host
            url = f"http://{host}:{self.port}"
            logger.info("serving %s on %s", self._service.name, url)
            if self._on_ready is not None:
                self._on_ready(url)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.call_later(self._service.limits.drain_seconds, self._service.engine.end_all)
        try:
            await super().shutdown(sockets)
        finally:
            deadline.cancel()

    @contextmanager
    def _replayed_signals(self) -> Iterator[None]:
        """uvicorn raises a signal again once it has shut down, which would end the process with an
        error; it then meets these handlers. They also cover the moment before its own are set."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {
            number: signal.signal(number, lambda *_: self.stop())
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens at once: two that are only bound could share a port."""
    if not 0 <= port < 1 << 16:
        raise ConfigError(f"cannot listen on {host}:{port}: a port is a number below 65536")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            # Lets a restarted server have its port back at once; a port in use still fails.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(2048)
        except BaseException:
            listener.close()
            raise
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"cannot listen on {host}:{port}: {reason}; choose another host or port"
        ) from error
    return listener
