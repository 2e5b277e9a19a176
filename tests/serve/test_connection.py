"""Clients that hold a connection for nothing."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import uvicorn
from starlette.responses import Response

from sparseinfer.serve import Limits, connection
from sparseinfer.serve.connection import connection_class

from .conftest import eventually

SIZE = 32 << 20


async def app(scope, receive, send):
    """Answers at once with more than the system keeps for a client, or with a word."""
    large = scope["path"] == "/large"
    await Response(b"x" * SIZE if large else b"hello")(scope, receive, send)


@contextmanager
def listening(limits: Limits | None = None) -> Iterator[tuple[int, uvicorn.Server]]:
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app, http=connection_class(limits or Limits()), ws="none", lifespan="off", log_config=None
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        eventually(lambda: server.started)
        yield listener.getsockname()[1], server
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


def received(client: socket.socket) -> bytes:
    """All that comes until the other side closes, orderly or not."""
    client.settimeout(10)
    content = b""
    try:
        while part := client.recv(1 << 20):
            content += part
    except ConnectionResetError:
        pass
    return content


def connect(port: int, request: bytes = b"", buffer: int | None = None) -> socket.socket:
    client = socket.socket()
    if buffer is not None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    client.connect(("127.0.0.1", port))
    client.sendall(request)
    return client


def test_one_that_never_reads_is_cut_off(caplog):
    request = b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n"
    with (
        listening(Limits(send_seconds=0.2)) as (port, server),
        connect(port, request, buffer=4096) as client,
    ):
        eventually(lambda: "read nothing for 0.2 seconds" in caplog.text)
        eventually(lambda: not server.server_state.connections)
        assert len(received(client)) < SIZE


def test_one_that_reads_gets_everything():
    request = b"GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with listening(Limits(send_seconds=5)) as (port, _), connect(port, request) as client:
        assert len(received(client).partition(b"\r\n\r\n")[2]) == SIZE


@pytest.mark.parametrize(
    "beginning",
    [
        b"",
        b"GET / HTTP/1.1\r\nHost:",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HT",
    ],
    ids=["silent", "half a header", "half a second header"],
)
def test_one_that_sends_no_whole_header_is_cut_off(monkeypatch, beginning):
    monkeypatch.setattr(connection, "HEADER_SECONDS", 0.2)
    with listening() as (port, server), connect(port, beginning) as client:
        answer = received(client)
        assert answer.count(b"200 OK") == beginning.count(b"\r\n\r\n")
        eventually(lambda: not server.server_state.connections)


def test_too_many_connections_are_refused(monkeypatch):
    monkeypatch.setattr(connection, "MAX_CONNECTIONS", 2)
    request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    with listening() as (port, server), connect(port), connect(port):
        eventually(lambda: len(server.server_state.connections) == 2)
        with connect(port, request) as third:
            answer = received(third)
            assert answer.startswith(b"HTTP/1.1 503")
            assert b"too_many_connections" in answer
            assert b"retry-after: 1" in answer.lower()


def test_far_too_many_connections_are_closed(monkeypatch):
    monkeypatch.setattr(connection, "MAX_CONNECTIONS", 1)
    monkeypatch.setattr(connection, "REFUSED_CONNECTIONS", 1)
    with listening() as (port, server), connect(port), connect(port) as second:
        eventually(lambda: len(server.server_state.connections) == 2)
        with connect(port) as third:
            assert received(third) == b""
        eventually(lambda: len(server.server_state.connections) == 2)
        second.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert received(second).startswith(b"HTTP/1.1 503")


@pytest.mark.parametrize(
    ("request_bytes", "status", "says"),
    [
        (b"GET\r\n\r\n", b"400", b"Invalid HTTP request"),
        (b"GET / HTTP/1.1\r\n\r\n", b"400", b"Invalid HTTP request"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * (64 << 10) + b"\r\n\r\n", b"431", b"65536"),
        (
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
            b"400",
            b"not both",
        ),
    ],
    ids=["no address", "no host", "large header", "two lengths"],
)
def test_what_cannot_be_understood_is_refused_and_nothing_behind_it_read(
    request_bytes, status, says
):
    with listening() as (port, _), connect(port, request_bytes) as client:
        head, _, body = received(client).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 " + status)
    error = json.loads(body)["error"]  # of one answer
    assert error["type"] == "invalid_request_error"
    assert says in error["message"].encode()


def test_noise_behind_an_answer_closes_the_connection(caplog):
    # Answered before its body is there, which then turns out to be none.
    beginning = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    with listening() as (port, server), connect(port, beginning) as client:
        client.settimeout(10)
        assert client.recv(1 << 20).startswith(b"HTTP/1.1 200")
        client.sendall(b"no number\r\n")
        received(client)
        eventually(lambda: not server.server_state.connections)
    assert "Fatal error" not in caplog.text


def test_offers_of_other_protocols_are_left_alone(caplog):
    offer = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close, Upgrade\r\nUpgrade: websocket\r\n\r\n"
    with listening() as (port, _), connect(port, offer) as client:
        assert received(client).startswith(b"HTTP/1.1 200")
    assert caplog.text == ""
