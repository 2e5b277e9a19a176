"""A server without a model: the page's files, and routes that play what a test wrote down.

It answers in the shape of the real routes, which have tests of their own; here a test decides word
by word what a browser gets to see. Run as a program it plays a scene to look at.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import socket
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

import sparseinfer.serve

PAGE = Path(sparseinfer.serve.__file__).with_name("page")

POLICY = (
    "default-src 'self'; require-trusted-types-for 'script'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
"""As strict as the real server's: also what would parse HTML from a string fails."""

Json = dict[str, Any]


@dataclass
class Script:
    """What one chat request gets."""

    pieces: Sequence[str] = ("Hello", " there.")
    finish: str = "stop"
    status: int = 200
    error: Json | None = None
    """The body of a refusal; with status 200, an error event after the pieces."""
    headers: dict[str, str] = field(default_factory=dict)
    ending: str = "done"
    """Or "cut": the stream ends without [DONE]; or "broken": so does the connection."""
    chop: int | None = None
    """Bytes that are sent at a time, wherever that cuts events and characters."""
    newline: str = "\n"
    pause: float = 0.0


def refusal(status: int, message: str, *, headers: dict[str, str] | None = None, **details: str):
    """A script of one error, in OpenAI's shape."""
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    return Script(status=status, error={**error, **details}, headers=headers or {})


def sparsity_info(layers: int = 4, active: float = 0.5, **fields: Any) -> Json:
    """The body of GET /v1/sparsity."""
    return {
        "object": "sparsity",
        "model": "scripted",
        "method": "chess",
        "layers": layers,
        "neurons": 1536,
        "window_tokens": 0,
        "active_fraction": [active] * layers,
        "calibrated": [0.5] * layers,
        "drift": [round(active - 0.5, 4)] * layers,
        "bytes_per_token": 168_000_000,
        "dense_bytes_per_token": 269_000_000,
        "neuron_sparsity": 1 - active,
        "ffn_byte_sparsity": 0.33,
        "model_byte_sparsity": 0.22,
        **fields,
    }


class Stage:
    """The server's state, which a test reads and writes."""

    def __init__(self) -> None:
        self.reset()
        self.listeners = 0
        """Streams of /v1/sparsity that are open."""
        self.app = Starlette(
            routes=[
                Route("/", self._index),
                Mount("/page", StaticFiles(directory=PAGE)),
                Route("/health", self._health),
                Route("/v1/models", self._models),
                Route("/v1/sparsity", self._sparsity),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
            ]
        )

    def reset(self) -> None:
        """Back to a server that has nothing to complain of."""
        self.scripts: deque[Script] = deque()
        """Played in turn; then the default one."""
        self.requests: list[Json] = []
        """Bodies of chat requests."""
        self.keys: list[str | None] = []
        """Authorization of every request that needs one."""
        self.key: str | None = None
        self.health = 200
        self.sparsity: Json | None = sparsity_info()
        self.permits: threading.Semaphore | None = None
        """Where set, each piece of an answer waits for one."""
        self.reports: deque[list[float]] = deque()
        """Active fractions that /v1/sparsity?stream=true sends, once each."""
        self.silent = False
        """Whether those streams end at once."""
        self.dropped = 0
        """Answers whose client went away."""

    async def _index(self, _request: Request) -> Response:
        return FileResponse(PAGE / "index.html", headers={"Content-Security-Policy": POLICY})

    async def _health(self, _request: Request) -> Response:
        if self.health != 200:
            return _error(self.health, "the model is loading")
        return JSONResponse({"status": "ok"})

    async def _models(self, request: Request) -> Response:
        return self._refused(request) or JSONResponse(
            {"object": "list", "data": [{"id": "scripted", "object": "model"}]}
        )

    async def _sparsity(self, request: Request) -> Response:
        if refused := self._refused(request):
            return refused
        if self.sparsity is None:
            return _error(404, "no such route")
        if request.query_params.get("stream") == "true":
            return StreamingResponse(self._report(), media_type="text/event-stream")
        return JSONResponse(self.sparsity)

    async def _report(self) -> AsyncIterator[bytes]:
        self.listeners += 1
        try:
            yield b": open\n\n"
            while not self.silent:
                while self.reports:
                    report = {**(self.sparsity or {}), "active_fraction": self.reports.popleft()}
                    yield b"data: " + json.dumps(report).encode() + b"\n\n"
                await asyncio.sleep(0.005)
        finally:
            self.listeners -= 1

    async def _chat(self, request: Request) -> Response:
        if refused := self._refused(request):
            return refused
        self.requests.append(await request.json())
        script = self.scripts.popleft() if self.scripts else Script()
        if script.status != 200:
            body = {"error": script.error}
            return JSONResponse(body, status_code=script.status, headers=script.headers)
        return StreamingResponse(self._play(script), media_type="text/event-stream")

    def _refused(self, request: Request) -> Response | None:
        given = request.headers.get("authorization")
        self.keys.append(given)
        if self.key is None or given == f"Bearer {self.key}":
            return None
        return _error(401, "the API key is missing or wrong")

    async def _play(self, script: Script) -> AsyncIterator[bytes]:
        try:
            async for event in self._events(script):
                data = event.replace(b"\n", script.newline.encode())
                step = script.chop or len(data)
                for start in range(0, len(data), step):
                    yield data[start : start + step]
                    # Else the server would put the pieces together again.
                    await asyncio.sleep(0.001 if script.chop else 0)
        except asyncio.CancelledError:
            self.dropped += 1
            raise

    async def _events(self, script: Script) -> AsyncIterator[bytes]:
        yield _event(_choice({"role": "assistant", "content": ""}))
        for piece in script.pieces:
            while self.permits is not None and not self.permits.acquire(blocking=False):
                await asyncio.sleep(0.003)
            await asyncio.sleep(script.pause)
            yield _event(_choice({"content": piece}))
        if script.error is not None:
            yield _event({"error": script.error})
            return
        if script.ending == "broken":
            # A browser that learns of this at once throws away what came before.
            await asyncio.sleep(0.2)
            raise ConnectionAbortedError("as the script says")
        if script.ending == "cut":
            return
        yield _event(_choice({}, script.finish))
        usage = {"prompt_tokens": 5, "completion_tokens": len(script.pieces)}
        yield _event({"choices": [], "usage": usage})
        yield b"data: [DONE]\n\n"


def _choice(delta: Json, finish: str | None = None) -> Json:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], "usage": None}


def _event(data: Json) -> bytes:
    # Not all ASCII, which is harder on the page than what the real server sends.
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"


def _error(status: int, message: str) -> Response:
    error = {"message": message, "type": "server_error", "param": None, "code": None}
    return JSONResponse({"error": error}, status_code=status)


@contextmanager
def serving(stage: Stage, port: int = 0) -> Iterator[str]:
    """Serves a stage from a thread; gives its address."""
    listener = socket.create_server(("127.0.0.1", port))
    config = uvicorn.Config(stage.app, log_level="critical", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


def wave(layers: int, step: int, noise: random.Random) -> list[float]:
    """Active fractions as a model might have them."""
    return [
        min(
            max(0.5 - 0.25 * math.cos(6 * layer / layers) + 0.06 * math.sin(step / 4 + layer), 0), 1
        )
        + noise.uniform(-0.03, 0.03)
        for layer in range(layers)
    ]


def main() -> None:
    stage = Stage()
    layers, noise = 30, random.Random(7)
    calibrated = wave(layers, 0, noise)
    stage.sparsity = sparsity_info(layers, calibrated=calibrated)
    text = "The sky is blue because air scatters short waves of light more than long ones. " * 3
    words = [f"{word} " for word in text.split()]
    with serving(stage, 8765) as url, suppress(KeyboardInterrupt):
        print(url)
        for step in range(10**6):
            if not stage.scripts:
                stage.scripts.extend([Script(words, pause=0.02), Script(words, pause=0.03)])
            stage.reports.append(wave(layers, step, noise))
            time.sleep(0.25)


if __name__ == "__main__":
    main()
