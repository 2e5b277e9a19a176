"""Everything a client can send that is not a good request: a 4xx that says why, never a 500."""

from __future__ import annotations

import json
import time

import httpx
import pytest

from sparseinfer.serve import Limits

from .conftest import running
from .scripted import ScriptedModel

JSON = {"Content-Type": "application/json"}


def check_error(answer: httpx.Response, status: int) -> dict:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert "\n" not in error["message"]
    assert len(error["message"]) < 500
    return error


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


FIELDS = [
    ("max_tokens", "5"),
    ("max_tokens", True),
    ("max_tokens", 5.0),
    ("max_tokens", 0),
    ("max_tokens", -1),
    ("max_tokens", 10**12),
    ("max_tokens", 10**400),
    ("temperature", -1),
    ("temperature", "hot"),
    ("temperature", True),
    ("temperature", 2.5),
    ("temperature", 1e308),
    ("top_p", 0),
    ("top_p", 2),
    ("top_k", -1),
    ("top_k", 1.5),
    ("min_p", 1.5),
    ("seed", -1),
    ("seed", 1 << 63),
    ("seed", "7"),
    ("stop", ""),
    ("stop", ["a", ""]),
    ("stop", ["a"] * 17),
    ("stop", ["a"] * 10_000),
    ("stop", "a" * 1025),
    ("stop", "a" * 1_000_000),
    ("stop", 5),
    ("stop", [5]),
    ("stop", {"a": 1}),
    ("stream", 1),
    ("stream", "true"),
    ("stream_options", {"include_usage": True}),
    ("n", 2),
    ("n", True),
    ("n", 10**6),
    ("logprobs", 0),
    ("logprobs", True),
    ("presence_penalty", 0.5),
    ("frequency_penalty", "0"),
    ("repetition_penalty", 1.1),
    ("logit_bias", {"5": 1}),
    ("ignore_eos", True),
    ("model", 5),
    ("user", 5),
    ("metadata", "x"),
    ("store", "no"),
    ("service_tier", 1),
    ("nonsense", 1),
    ("nonsense", None),
    ("model_fields", 1),
    ("a" * 1000, 1),
]
COMPLETION_FIELDS = [
    ("prompt", None),
    ("prompt", []),
    ("prompt", ""),
    ("prompt", [""]),
    ("prompt", [[]]),
    ("prompt", 5),
    ("prompt", {}),
    ("prompt", [-1]),
    ("prompt", [257]),
    ("prompt", [10**30]),
    ("prompt", [True]),
    ("prompt", [1.0]),
    ("prompt", [1, "a"]),
    ("prompt", [[1, "a"]]),
    ("prompt", [["a"]]),
    ("prompt", ["a", "b"]),
    ("prompt", [[1], [2]]),
    ("prompt", ["a", 1]),
    ("best_of", 2),
    ("echo", True),
    ("suffix", "x"),
    ("max_completion_tokens", 5),
    ("messages", []),
]
CHAT_FIELDS = [
    ("max_completion_tokens", 0),
    ("top_logprobs", 2),
    ("tools", [{"type": "function"}]),
    ("tool_choice", "required"),
    ("response_format", {"type": "json_object"}),
    ("modalities", ["audio"]),
    ("chat_template_kwargs", {}),
    ("prompt", "x"),
    ("messages", None),
    ("messages", []),
    ("messages", "hi"),
    ("messages", [5]),
    ("messages", [{}] * 10_000),
]
MESSAGES = [
    ({"role": "user"}, "content"),
    ({"role": "user", "content": None}, "content"),
    ({"role": "user", "content": 5}, "content"),
    ({"role": "user", "content": []}, "content"),
    ({"role": "user", "content": ["x"]}, "content"),
    ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "content"),
    ({"role": "user", "content": [{"type": "text"}]}, "content"),
    ({"role": "user", "content": [{"type": "text", "text": 5}]}, "content"),
    ({"role": "tool", "content": "x"}, "role"),
    ({"role": 5, "content": "x"}, "role"),
    ({"content": "x"}, "role"),
    ({"role": "user", "content": "x", "name": "Ann"}, "name"),
    ({"role": "assistant", "content": "x", "tool_calls": [{}]}, "tool_calls"),
    ({"role": "user", "content": "x", "nonsense": 1}, "nonsense"),
]


def _shown(value):
    return repr(value)[:30]


@pytest.mark.parametrize(("field", "value"), FIELDS + COMPLETION_FIELDS, ids=_shown)
def test_completion_field_is_refused_by_name(echo_server, field, value):
    body = json.dumps({"prompt": "x", field: value})
    answer = echo_server.http.post("/v1/completions", content=body, headers=JSON)
    error = check_error(answer, 400)
    assert error["param"] == field[:200]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(("field", "value"), FIELDS + CHAT_FIELDS, ids=_shown)
def test_chat_field_is_refused_by_name(echo_server, field, value):
    body = {"messages": [{"role": "user", "content": "x"}], field: value}
    error = check_error(echo_server.http.post("/v1/chat/completions", json=body), 400)
    assert error["param"].partition("[")[0] == field[:200]


@pytest.mark.parametrize(("message", "field"), MESSAGES, ids=_shown)
def test_message_is_refused_by_place(echo_server, message, field):
    body = {"messages": [{"role": "user", "content": "x"}, message]}
    error = check_error(echo_server.http.post("/v1/chat/completions", json=body), 400)
    assert error["param"] == f"messages[1].{field}"


def test_both_chat_limits_are_refused(echo_server):
    body = {"messages": [{"role": "user", "content": "x"}]}
    body |= {"max_tokens": 5, "max_completion_tokens": 5}
    error = check_error(echo_server.http.post("/v1/chat/completions", json=body), 400)
    assert error["param"] == "max_tokens"


def test_stream_options_are_checked(echo_server):
    for options, param in (
        ({"include_usage": 1}, "stream_options.include_usage"),
        ({"include_obfuscation": True}, "stream_options.include_obfuscation"),
        ({"x": 1}, "stream_options.x"),
        ([], "stream_options"),
    ):
        error = check_error(echo_server.complete("x", stream=True, stream_options=options), 400)
        assert error["param"] == param


NEUTRAL = {
    "model": None,
    "n": 1,
    "logprobs": None,
    "presence_penalty": 0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "logit_bias": {},
    "stop": None,
    "seed": None,
    "stream": None,
    "stream_options": None,
    "temperature": None,
    "top_p": 1,
    "top_k": None,
    "min_p": 0,
    "max_tokens": None,
    "ignore_eos": False,
    "user": "me",
    "metadata": {"a": "b"},
    "store": False,
    "service_tier": "auto",
}


def test_null_and_defaults_equal_absent(echo_server):
    extra = {"best_of": 1, "echo": False, "suffix": None, "stop": []}
    answer = echo_server.complete("hi", **{**NEUTRAL, **extra})
    assert answer.json()["choices"][0]["text"] == "hi"
    message = {"role": "user", "content": "hi", "name": None, "tool_calls": []}
    body = {
        **NEUTRAL,
        "messages": [message],
        "logprobs": False,
        "top_logprobs": None,
        "tools": [],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "max_completion_tokens": None,
        "reasoning_effort": None,
    }
    answer = echo_server.http.post("/v1/chat/completions", json=body)
    assert answer.json()["choices"][0]["message"]["content"] == "u:hi|a:"


@pytest.mark.parametrize("text", ["\0", "\u202e abc", "a\r\nb", "{{ 7*7 }}", "\ufeffa"])
def test_odd_but_valid_text(echo_server, text):
    assert echo_server.complete(text).json()["choices"][0]["text"] == text
    body = {"messages": [{"role": "user", "content": text}]}
    answer = echo_server.http.post("/v1/chat/completions", json=body)
    assert answer.json()["choices"][0]["message"]["content"].startswith("u:")


def test_unknown_route_and_wrong_method(echo_server):
    http = echo_server.http
    for path in ("/", "/v1", "/v1/embeddings", "/v1/models/", "/docs", "/redoc", "/v1/%2e%2e/etc"):
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
    with running(ScriptedModel(), limits=Limits(body_bytes=100_000)) as server:
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
    with running(ScriptedModel(), limits=Limits(body_seconds=0.2)) as server:

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
