"""Bodies that are broken, too large or too deep, byte by byte on a socket."""

from __future__ import annotations

import gzip
import socket

import pytest

from ..conftest import check_error, eventually
from .conftest import JSON, MAX_BODY, post

ROUTES = ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize")


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt": "x", "max_tok',
        b'{"prompt": "x"} {}',
        b"[" * 5000 + b"]" * 5000,
        b'{"prompt": ' + b'{"a":' * 5000 + b"1" + b"}" * 5001,
        b'{"messages": [{"role": "user", "content": ' + b"[" * 5000 + b"]" * 5000 + b"}]}",
        b'{"prompt": "x", "metadata": ' + b'{"a":[' * 2500 + b"]}" * 2500 + b"}",
    ],
    ids=["truncated", "two", "deep list", "deep object", "deep content", "deep metadata"],
)
def test_not_json(target, path, body):
    answer = target.http.post(path, content=body, headers={"Content-Type": "application/json"})
    assert check_error(answer, 400)["code"] == "invalid_json"
    assert target.is_healthy()


def test_chunks_without_end_are_cut_off(target):
    """The server answers while the client still sends, and takes no more than its limit."""
    head = post("/v1/completions") + JSON + b"Transfer-Encoding: chunked"
    chunk = b"4000\r\n" + b" " * 0x4000 + b"\r\n"
    sent = 0
    with target.send(head) as client:
        client.settimeout(0.05)
        answer = b""
        while not answer and sent < 100 * MAX_BODY:
            try:
                client.settimeout(20)
                client.sendall(chunk)
                sent += len(chunk)
                client.settimeout(0.01)
                answer = client.recv(65536)
            except TimeoutError:
                continue
            except (BrokenPipeError, ConnectionResetError):
                break
    assert sent < 20 * MAX_BODY
    assert answer == b"" or answer.startswith(b"HTTP/1.1 413")
    eventually(lambda: target.metric("requests_in_hand") == 0)


@pytest.mark.parametrize("length", [MAX_BODY + 1, 10**15])
def test_a_size_that_is_too_large_is_refused_unread(target, length):
    head = post("/v1/completions") + JSON + b"Content-Length: %d" % length
    with target.send(head) as client:
        assert client.recv(65536).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    "headers",
    [
        b"Content-Length: -5",
        b"Content-Length: 5\r\nContent-Length: 6",
        b"Content-Length: 0x10",
        b"Content-Length: " + b"9" * 5000,
        b"Transfer-Encoding: gzip, chunked",
        b"X: " + b"y" * 99_999,
    ],
    ids=["negative", "two", "hex", "endless", "encoded", "large header"],
)
def test_heads_that_lie(target, headers):
    with target.send(post("/v1/completions") + JSON + headers, b"{}") as client:
        answer = _all_of(client)
    assert answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 501")), answer[:300]


def test_compressed_bodies_are_not_opened(target):
    before = target.process.resident_bytes
    bomb = gzip.compress(b" " * (100 << 20))
    assert len(bomb) < MAX_BODY
    for encoding in ("gzip", "deflate", "br", "gzip, gzip"):
        headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
        answer = target.http.post("/v1/completions", content=bomb, headers=headers)
        check_error(answer, 415)
    assert target.process.resident_bytes - before < 50 << 20
    assert target.is_healthy()


def test_a_body_that_ends_early(target):
    head = post("/v1/completions") + JSON + b"Content-Length: 500"
    with target.send(head, b'{"prompt": "x"') as client:
        eventually(lambda: target.metric("requests_in_hand") == 1)
        client.shutdown(socket.SHUT_WR)
        client.close()
    eventually(lambda: target.metric("requests_in_hand") == 0)


def test_no_http_at_all(target):
    for noise in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\0" * 5000, b"GET\r\n"):
        with target.send(noise) as client:
            assert not _all_of(client).startswith(b"HTTP/1.1 2")


def _all_of(client: socket.socket) -> bytes:
    content = b""
    try:
        while part := client.recv(65536):
            content += part
            if content.startswith(b"HTTP/1.1 ") and b"\r\n\r\n" in content:
                return content
    except ConnectionResetError:
        pass
    return content
