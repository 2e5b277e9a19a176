"""Listens, logs where, and shuts down in order."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI

from sparseinfer.errors import ConfigError
from sparseinfer.serve.connection import connection_class
from sparseinfer.serve.errors import shutting_down
from sparseinfer.serve.service import Service

logger = logging.getLogger("sparseinfer")

_LAST_RESORT_SECONDS = 5
"""After the requests in hand were told to end, before their connections are cut."""
_POLL_SECONDS = 0.05
_PATIENCE_SECONDS = 3.0
"""Before it is worth saying that the model is being loaded."""


def run_server(
    app: FastAPI,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serves an app of `create_app` until SIGINT or SIGTERM, then returns.

    It listens before the model is loaded: until then /health says 503. After the signal requests in
    hand may finish within `Limits.drain_seconds`, while /health says 503 and new ones are refused;
    what is left then, or at a second SIGINT, ends with an error. Logs to `sparseinfer` and prints
    nothing; `on_ready` gets the URL once the model is loaded.

    Raises:
        ConfigError: the address cannot be listened on (port in use, unknown host, no permission).
        Exception: whatever loading the model or `on_ready` raised, or what broke the engine.
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
        self._failure: BaseException | None = None
        self._hurried = False
        """Whether requests in hand are not waited for: a second Ctrl-C."""
        self._service: Service = app.state.service
        self._service.on_change = self._changed
        self._socket = _listen(host, port)
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}"
        super().__init__(
            uvicorn.Config(
                app,
                http=connection_class(self._service.limits),
                loop="asyncio",
                ws="none",
                lifespan="on",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=_LAST_RESORT_SECONDS,
            )
        )

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serves until a signal (in the main thread) or `stop`.

        Raises:
            Exception: as `run_server`.
        """
        with self._replayed_signals():
            super().run(sockets or [self._socket])
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Shuts down as SIGTERM does; callable from any thread."""
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn leaves everything as it is at a second Ctrl-C, and says so in a traceback.
        self._hurried |= self.should_exit and sig == signal.SIGINT
        super().handle_exit(sig, frame)
        self.force_exit = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # What can be found wrong at once is said without ado.
        asyncio.get_running_loop().call_later(_PATIENCE_SECONDS, self._say_loading)

    async def main_loop(self) -> None:
        await super().main_loop()
        await self._drain()

    async def _drain(self) -> None:
        """Lets requests in hand finish; meanwhile /health can still be asked."""
        service = self._service
        service.draining = True
        deadline = time.monotonic() + service.limits.drain_seconds
        while service.gate.requests and time.monotonic() < deadline and not self._hurried:
            await asyncio.sleep(_POLL_SECONDS)
        service.engine.fail_all(shutting_down())

    def _say_loading(self) -> None:
        if self._service.health == "loading":
            logger.info("listening on %s; the model is being loaded", self.url)

    def _changed(self) -> None:
        """The model was loaded, or never will be."""
        engine = self._service.engine
        if engine.state == "failed":
            self._failure = engine.error
            self.stop()
        elif engine.served is not None:
            logger.info("serving %s on %s", engine.served.name, self.url)
            try:
                if self._on_ready is not None:
                    self._on_ready(self.url)
            except Exception as error:  # nobody is there to be told
                self._failure = error
                self.stop()

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
