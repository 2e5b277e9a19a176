"""Many clients, one engine: order, overflow, and clients that leave or do not read."""

from __future__ import annotations

import json
import logging
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from sparseinfer.serve import Limits

from .conftest import Running, eventually, running
from .scripted import ScriptedScheduler, endless


@pytest.fixture
def held():
    """A server whose model produces a token only when the test permits one."""
    scheduler = ScriptedScheduler(endless, context=200_000)
    scheduler.permits = threading.Semaphore(0)
    with running(scheduler, limits=Limits(waiting_requests=2)) as server:
        yield server
        scheduler.permits.release(10_000)


def send(server: Running, prompt: str, *, receive_buffer: int | None = None, **fields):
    """A request on a socket of its own, not waiting for the answer."""
    body = json.dumps({"prompt": prompt, **fields}).encode()
    client = socket.socket()
    if receive_buffer is not None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    client.connect(("127.0.0.1", server.port))
    client.settimeout(20)
    client.sendall(
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        + b"Content-Length: %d\r\n\r\n" % len(body)
        + body
    )
    return client


def test_event_loop_is_free_while_the_engine_works(held):
    with send(held, "one"):
        eventually(lambda: held.scheduler.started == ["one"])
        assert held.http.get("/health").status_code == 200
        assert held.http.get("/v1/models").status_code == 200


def test_first_come_first_served_and_overflow(held):
    with ThreadPoolExecutor(3) as pool:
        answers = []
        for number, prompt in enumerate(["one", "two", "three"], start=1):
            answers.append(pool.submit(held.complete, prompt, max_tokens=2))
            eventually(lambda: held.taken == number)  # noqa: B023 - waited for here
            eventually(lambda: len(held.scheduler.started) + _waiting(held) == number)  # noqa: B023
        refused = held.complete("four")
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert held.http.get("/health").status_code == 200
        held.scheduler.permits.release(6)
        assert [a.result().status_code for a in answers] == [200] * 3
    assert held.scheduler.started == ["one", "two", "three"]
    held.scheduler.permits.release(16)
    assert held.complete("five").status_code == 200
    assert held.taken == 0


@pytest.mark.parametrize("stream", [True, False])
def test_disconnect_while_decoding_ends_within_a_step(held, stream):
    client = send(held, "one", stream=stream, max_tokens=1000)
    held.scheduler.permits.release(3)
    eventually(lambda: held.scheduler.produced == 3)
    if stream:
        received = b""
        while b"data:" not in received:
            received += client.recv(65536)
    client.close()
    eventually(lambda: held.taken == 0)
    held.scheduler.permits.release(100)
    eventually(lambda: held.complete("two", max_tokens=1).status_code == 200)
    assert held.scheduler.started == ["one", "two"]
    # Three, at most the one in work when the client left, and one of the second request.
    assert held.scheduler.produced <= 5


@pytest.mark.parametrize("stream", [True, False])
def test_disconnect_in_the_queue(held, stream):
    with send(held, "one", max_tokens=1) as first:
        eventually(lambda: held.scheduler.started == ["one"])
        for _ in range(5):
            second = send(held, "two", stream=stream)
            eventually(lambda: held.taken == 2 and _waiting(held) == 1)
            second.close()
            eventually(lambda: held.taken == 1 and _waiting(held) == 0)
        held.scheduler.permits.release(100)
        assert b"200 OK" in first.recv(65536)
    eventually(lambda: held.taken == 0)
    assert held.complete("three", max_tokens=1).status_code == 200
    assert held.scheduler.started == ["one", "three"]


def test_disconnect_in_the_body(held):
    with socket.create_connection(("127.0.0.1", held.port)) as client:
        client.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b'Content-Length: 1000\r\n\r\n{"prompt":'
        )
        eventually(lambda: held.taken == 1)
    eventually(lambda: held.taken == 0)
    assert held.scheduler.started == []


def test_client_that_never_reads_is_dropped_and_delays_no_one(caplog):
    caplog.set_level(logging.WARNING, "sparseinfer")
    scheduler = ScriptedScheduler(endless, context=100_000, slots=2)
    # Many bytes a token: the system takes megabytes before anyone has to wait.
    fields = {"stream": True, "max_tokens": 60_000, "logprobs": 20}
    with (
        running(scheduler, limits=Limits(send_seconds=0.3)) as server,
        send(server, "one", receive_buffer=4096, **fields),
    ):
        eventually(lambda: scheduler.started == ["one"])
        assert server.complete("two", max_tokens=1).status_code == 200
        eventually(lambda: server.taken == 0 and scheduler.running == 0)
        assert "read nothing for 0.3 seconds" in caplog.text
        assert scheduler.produced < 60_000


def _waiting(server: Running) -> int:
    return server.scheduler.waiting
