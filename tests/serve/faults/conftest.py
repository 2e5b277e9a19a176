"""A server as a process of its own, with the real engine, shared by all that is done to it."""

from __future__ import annotations

import importlib
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest

from ..conftest import eventually

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"
CONTEXT = 4096
SLOTS, QUEUE = 2, 16
MAX_BODY = 200_000
SEND_SECONDS = 2
JSON = b"Content-Type: application/json\r\n"
LONG = {"max_tokens": 3500, "ignore_eos": True}
"""Takes far longer than a test waits, unless it is taken back."""


@pytest.fixture(scope="session")
def acceptance() -> Iterator[dict[str, ModuleType]]:
    """Modules of `benchmarks/acceptance`, imported as its script imports them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        names = ("server_process", "server_fuzz", "server_soak", "soak_requests")
        yield {name: importlib.import_module(f"acceptance.{name}") for name in names}


@dataclass(frozen=True)
class Target:
    """The server, and clients for it."""

    process: Any
    http: httpx.Client
    fine: str
    """What it answers to an ordinary request."""

    @property
    def port(self) -> int:
        return int(self.process.url.rpartition(":")[2])

    def complete(self, prompt: Any, **fields: Any) -> httpx.Response:
        return self.http.post("/v1/completions", json={"prompt": prompt, **fields})

    def is_healthy(self) -> bool:
        return self.process.process.poll() is None and ordinary(self.http) == self.fine

    def metric(self, name: str) -> float:
        return self.process.metrics()[f"sparseinfer_{name}"]

    def is_idle(self) -> bool:
        names = ("slots_prefilling", "slots_decoding", "queue_length", "requests_in_hand")
        return not any(self.metric(name) for name in names)

    def send(
        self, head: bytes, body: bytes = b"", *, receive_buffer: int | None = None
    ) -> socket.socket:
        """Raw bytes on a connection of their own; the answer is for the caller to read."""
        client = socket.socket()
        if receive_buffer is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.connect(("127.0.0.1", self.port))
        client.settimeout(60)
        client.sendall(head + b"\r\n\r\n" + body)
        return client

    def ask(self, prompt: Any, *, receive_buffer: int | None = None, **fields) -> socket.socket:
        """A completion on a connection of its own, not waited for."""
        body = json.dumps({"prompt": prompt, **fields}).encode()
        head = post("/v1/completions") + JSON + b"Content-Length: %d" % len(body)
        return self.send(head, body, receive_buffer=receive_buffer)


def post(path: str) -> bytes:
    return b"POST %s HTTP/1.1\r\nHost: localhost\r\n" % path.encode()


def ordinary(http: httpx.Client) -> str:
    answer = http.post(
        "/v1/completions", json={"prompt": "All is", "max_tokens": 4, "temperature": 0}
    )
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["text"]


@pytest.fixture(scope="session")
def process(acceptance, make_model) -> Iterator[Any]:
    options = {
        "--slots": SLOTS,
        "--queue": QUEUE,
        "--threads": 1,
        "--max-body": MAX_BODY,
        "--send-seconds": SEND_SECONDS,
        "--body-seconds": 5,
    }
    given = [str(part) for option in options.items() for part in option]
    with acceptance["server_process"].server_process(
        make_model(max_position_embeddings=CONTEXT),
        *given,
        environment={"OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"]},
    ) as started:
        yield started


@pytest.fixture(scope="session")
def target_of_all(process) -> Iterator[Target]:
    with httpx.Client(base_url=process.url, timeout=60) as http:
        yield Target(process, http, ordinary(http))


@pytest.fixture
def target(target_of_all) -> Iterator[Target]:
    """Whatever a test does to it, it must be well and idle afterwards."""
    yield target_of_all
    assert target_of_all.is_healthy()
    eventually(target_of_all.is_idle, seconds=30)
