"""A real server in a thread, over a scripted scheduler."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import openai
import pytest

from sparseinfer.serve import Access, Limits, Served, Server, create_app
from sparseinfer.serve.service import Service
from sparseinfer.tokenizer import Tokenizer

from .scripted import ScriptedScheduler, scripted

JSON = {"Content-Type": "application/json"}


def eventually(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Waits until a condition holds, and fails if it never does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def check_error(answer: httpx.Response, status: int) -> dict:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert "\n" not in error["message"]
    assert len(error["message"]) < 500
    return error


@dataclass
class Running:
    """A server under test, its scheduler and clients for it."""

    scheduler: ScriptedScheduler
    server: Server
    http: httpx.Client

    @property
    def port(self) -> int:
        return self.server.port

    @property
    def service(self) -> Service:
        return self.server._service

    @property
    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.http.base_url}/v1", api_key="none", max_retries=0)

    @property
    def taken(self) -> int:
        """Places taken at the gate."""
        return self.service.gate.requests

    def complete(self, prompt: str, **fields) -> httpx.Response:
        return self.http.post("/v1/completions", json={"prompt": prompt, **fields})

    def chat(self, content: str, **fields) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": content}], **fields}
        return self.http.post("/v1/chat/completions", json=body)

    def is_healthy(self) -> bool:
        """Whether an ordinary request gets its answer."""
        answer = self.complete("fine")
        return answer.status_code == 200 and answer.json()["choices"][0]["text"] == "fine"


@contextmanager
def serving(
    load: Callable[[], Served],
    limits: Limits | None = None,
    access: Access | None = None,
    *,
    ready: bool = True,
    log_prompts: bool = False,
) -> Iterator[tuple[Server, httpx.Client]]:
    """Any model behind a real server.

    Args:
        ready: whether to wait until the model is loaded.
    """
    app = create_app(load, limits=limits, access=access, log_prompts=log_prompts)
    server = Server(app, port=0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        with httpx.Client(base_url=server.url, timeout=20) as http:
            eventually(lambda: server.started)
            if ready:
                eventually(lambda: server._service.health == "ok")
            yield server, http
    finally:
        server.stop()
        thread.join(30)
        assert not thread.is_alive()


@contextmanager
def running(
    scheduler: ScriptedScheduler,
    tokenizer: Tokenizer | None = None,
    limits: Limits | None = None,
    **options,
) -> Iterator[Running]:
    """A scripted scheduler behind a real server."""
    with serving(lambda: scripted(scheduler, tokenizer), limits, **options) as (server, http):
        yield Running(scheduler, server, http)


@pytest.fixture(scope="module")
def echo_server() -> Iterator[Running]:
    """Answers every prompt with the prompt; shared, so a test must leave it as it found it."""
    with running(ScriptedScheduler(slots=3)) as it:
        yield it
