"""A real server in a thread, over a scripted model."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import openai
import pytest

from sparseinfer.serve import Limits, Server, create_app
from sparseinfer.serve.engine_thread import ServedModel
from sparseinfer.tokenizer import Tokenizer

from .scripted import ScriptedModel, byte_tokenizer


def eventually(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Waits until a condition holds, and fails if it never does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


@dataclass
class Running:
    """A server under test, its model and clients for it."""

    model: ScriptedModel
    server: Server
    http: httpx.Client

    @property
    def port(self) -> int:
        return self.server.port

    @property
    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.http.base_url}/v1", api_key="none", max_retries=0)

    @property
    def taken(self) -> int:
        """Places taken at the gate."""
        return self.server._service._gate._taken

    def complete(self, prompt: str, **fields) -> httpx.Response:
        return self.http.post("/v1/completions", json={"prompt": prompt, **fields})

    def is_healthy(self) -> bool:
        """Whether an ordinary request gets its answer."""
        answer = self.complete("fine")
        return answer.status_code == 200 and answer.json()["choices"][0]["text"] == "fine"


@contextmanager
def running(
    model: ServedModel, tokenizer: Tokenizer | None = None, limits: Limits | None = None
) -> Iterator[Running]:
    app = create_app(model, tokenizer or byte_tokenizer(), "scripted", limits=limits)
    server = Server(app, port=0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=20) as http:
            eventually(lambda: server.started)
            yield Running(model, server, http)
    finally:
        server.stop()
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def echo_server() -> Iterator[Running]:
    """Answers every prompt with the prompt; shared, so a test must leave it as it found it."""
    with running(ScriptedModel()) as it:
        yield it
