"""Everything a client can send that is not a good request: a 4xx that says why, never a 500."""

from __future__ import annotations

import json
import socket
import time

import httpx
import pytest

from sparseinfer.serve import Limits

from .conftest import JSON, check_error, running
from .scripted import ScriptedScheduler


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"hello",
        b'{"prompt": "x"',
        b"[1]",
        b'"x"',
        b"null",
        b"\xff\xfe{}",
        b"[" * 5000,
        b'{"prompt":' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"prompt": "x", "temperature": NaN}',
        b'{"prompt": "x", "temperature": Infinity}',
        b'{"prompt": "x", "temperature": -Infinity}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "\\udc00 \\ud800"}',
        b'{"prompt": "\xed\xa0\x80"}',
        b'{"prompt": "x", "max_tokens": 1' + b"0" * 5000 + b"}",
        bytes(range(256)),
    ],
    ids=lambda body: body[:30].decode("latin-1"),
)
def test_not_json(echo_server, body):
    for route in ("completions", "chat/completions"):
        check_error(echo_server.http.post(f"/v1/{route}", content=body, headers=JSON), 400)
    assert echo_server.is_healthy()


@pytest.mark.parametrize("text", ["\0", "\u202e abc", "a\r\nb", "{{ 7*7 }}", "\ufeffa"])
def test_odd_but_valid_text(echo_server, text):
    assert echo_server.complete(text).json()["choices"][0]["text"] == text
    body = {"messages": [{"role": "user", "content": text}]}
    answer = echo_server.http.post("/v1/chat/completions", json=body)
    assert answer.json()["choices"][0]["message"]["content"].startswith("u:")


def test_unknown_route_and_wrong_method(echo_server):
    http = echo_server.http
    for path in (
        "/v1",
        "/v1/embeddings",
        "/v1/models/",
        "/docs",
        "/redoc",
        "/page/../app.py",
        "/page/%2e%2e/app.py",
        "/page/none.js",
        "/v1/%2e%2e/etc",
    ):
        check_error(http.get(path), 404)
    for method, path in (
        ("GET", "/v1/completions"),
        ("DELETE", "/v1/models"),
        ("POST", "/health"),
        ("OPTIONS", "/v1/chat/completions"),
    ):
        answer = http.request(method, path)
        check_error(answer, 405)
        assert answer.headers["allow"]


def test_health_and_openapi(echo_server):
    answer = echo_server.http.get("/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    assert "access-control-allow-origin" not in answer.headers
    document = echo_server.http.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    references = json.dumps(document).split('"$ref": "#/components/schemas/')[1:]
    assert {"CompletionRequest", "ChatRequest"} <= set(schemas)
    assert {reference.split('"')[0] for reference in references} <= set(schemas)


def test_only_plain_json_bodies(echo_server):
    http = echo_server.http
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = http.post("/v1/completions", content=b"{}", headers={"Content-Type": kind})
        check_error(answer, 415)
    headers = {**JSON, "Content-Encoding": "gzip"}
    check_error(http.post("/v1/completions", content=b"\x1f\x8b", headers=headers), 415)
    kind = "Application/JSON; charset=utf-8"
    answer = http.post("/v1/completions", content=b'{"prompt":"x"}', headers={"Content-Type": kind})
    assert answer.status_code == 200


def test_large_bodies():
    with running(ScriptedScheduler(), limits=Limits(body_bytes=100_000)) as server:
        padded = json.dumps({"prompt": "x"}).encode().ljust(100_000)
        answer = server.http.post("/v1/completions", content=padded, headers=JSON)
        assert answer.status_code == 200
        error = check_error(
            server.http.post("/v1/completions", content=padded + b" ", headers=JSON), 413
        )
        assert "100000" in error["message"]

        def chunks():
            for _ in range(200):
                yield b" " * 1000

        check_error(server.http.post("/v1/completions", content=chunks(), headers=JSON), 413)
        assert server.is_healthy()
        assert server.taken == 0


def test_slow_body():
    with running(ScriptedScheduler(), limits=Limits(body_seconds=0.2)) as server:

        def halves():
            yield b'{"prompt":'
            time.sleep(0.6)
            yield b'"x"}'

        with httpx.Client(base_url=server.http.base_url) as client:
            try:
                answer = client.post("/v1/completions", content=halves(), headers=JSON)
            except httpx.WriteError:
                pass  # the server closes the connection, which the client may notice first
            else:
                check_error(answer, 408)
        assert server.is_healthy()
        assert server.taken == 0


def test_texts_that_cannot_fit_are_refused_unread(echo_server, monkeypatch):
    # 512 tokens of at most 12 characters each.
    tokenizer = echo_server.service.served.tokenizer
    for text in ("x" * 6145, "x" * 3_000_000):
        with monkeypatch.context() as patched:
            patched.setattr(tokenizer, "encode", None)
            patched.setattr(tokenizer, "encode_chat", None)
            for answer in (echo_server.complete(text), echo_server.chat(text)):
                error = check_error(answer, 400)
                assert error["code"] == "context_length_exceeded"
                assert str(len(text)) in error["message"]
                assert "512" in error["message"]
    check_error(echo_server.complete("x" * 6144), 400)


@pytest.mark.parametrize(
    "headers",
    [
        b"Content-Length: " + b"9" * 5000,
        b"Content-Length: 99999999999999999999",
        b"Content-Length: -1",
        b"Content-Length: 5\r\nContent-Length: 6",
        b"Transfer-Encoding: gzip",
        b"X: " + b"a" * 100_000,
        b"X" * 10_000 + b": a",
        b"\xff: \xff",
        b" folded: x",
        b"Expect: 100-continue\r\nContent-Length: 999999999",
        b"Upgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 2",
    ],
    ids=lambda headers: headers[:30].decode("latin-1"),
)
def test_bad_headers(echo_server, headers):
    with socket.create_connection(("127.0.0.1", echo_server.port), timeout=10) as client:
        beginning = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
        kind = b"Content-Type: application/json\r\n"
        client.sendall(beginning + kind + headers + b"\r\n\r\n{}")
        status = int(client.recv(65536).split(b" ")[1])
    assert 400 <= status < 500
    assert echo_server.is_healthy()


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'{"prompt": "x", "prompt": "y"}', "prompt"),
        (b'{"prompt": "x", "n": 1, "n": 1}', "n"),
        (b'{"prompt": "x", "pr\\u006fmpt": "y"}', "prompt"),
        (b'{"prompt": "x", "metadata": {"a": [{"b": 1, "b": 2}]}}', "b"),
        (b'{"prompt": "x", "logit_bias": {"5": 1, "5": 2}}', "5"),
    ],
)
def test_no_name_may_be_there_twice(echo_server, body, name):
    error = check_error(echo_server.http.post("/v1/completions", content=body, headers=JSON), 400)
    assert (error["param"], error["code"]) == (name, "invalid_json")


@pytest.mark.parametrize(
    "path", ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"]
)
def test_fields_in_the_address_are_refused(echo_server, path):
    body = {"prompt": "x", "messages": [{"role": "user", "content": "x"}], "tokens": [1]}
    answer = echo_server.http.post(f"{path}?stream=true", json=body)
    assert check_error(answer, 400)["param"] == "stream"


def test_head_of_what_monitors_ask_for(echo_server):
    for path in ("/", "/health"):
        answer = echo_server.http.head(path)
        assert (answer.status_code, answer.content) == (200, b"")
