"""Requests that ask for what must not be: refused by name, and the next one is answered."""

from __future__ import annotations

import json
import time

import pytest

from ..conftest import check_error
from .conftest import CONTEXT

REFUSED = [
    ("n", 10**6),
    ("best_of", 10**6),
    ("max_tokens", -1),
    ("max_tokens", 0),
    ("max_tokens", 10**12),
    ("max_tokens", "5"),
    ("temperature", -1),
    ("temperature", 1e308),
    ("top_p", 0),
    ("top_p", 2),
    ("logprobs", 21),
    ("prompt", ""),
    ("prompt", []),
    ("prompt", [[]]),
    ("prompt", [-1]),
    ("prompt", [300]),
    ("prompt", [2**63]),
    ("prompt", [[5], [10**9]]),
    ("prompt", "x" * (CONTEXT + 50)),
    ("stop", ""),
    ("stop", ["x"] * 10_000),
    ("stop", "x" * 150_000),
    ("seed", 2**64),
    ("logit_bias", {"300": 1}),
    ("logit_bias", {"0" * 1000: 1}),
]


@pytest.mark.parametrize(
    ("field", "value"), REFUSED, ids=[f"{name} {value!r:.20}" for name, value in REFUSED]
)
def test_refused_by_name(target, field, value):
    body = {"prompt": "x", "max_tokens": 2, field: value}
    error = check_error(target.http.post("/v1/completions", json=body), 400)
    assert error["param"] == field
    assert target.is_healthy()


def test_prompt_over_the_context_says_both_counts(target):
    error = check_error(target.complete("x" * (CONTEXT + 50)), 400)
    assert str(CONTEXT + 50) in error["message"]
    assert str(CONTEXT) in error["message"]
    assert error["code"] == "context_length_exceeded"
    error = check_error(target.complete("x" * 4000, max_tokens=500), 400)
    assert "4500" in error["message"]


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", "0x10", "1" * 5000])
@pytest.mark.parametrize("field", ["temperature", "max_tokens"])
def test_numbers_that_are_none(target, field, value):
    body = f'{{"prompt": "x", "{field}": {value}}}'
    check_error(_raw(target, body), 400)


@pytest.mark.parametrize(
    "text", ['"\\ud800"', '"\\udc00\\ud800"', '["ok", "\\udfff"]'], ids=["high", "both", "listed"]
)
def test_lone_surrogates_are_no_text(target, text):
    error = check_error(_raw(target, f'{{"prompt": {text}, "echo": true}}'), 400)
    assert error["code"] == "invalid_json"
    for path in ("/tokenize", "/v1/chat/completions"):
        check_error(_raw(target, f'{{"prompt": {text}, "messages": {text}}}', path), 400)


@pytest.mark.parametrize(
    "text", ["\0", "a\0b", "\u202eevil\u202c", "\u2066x\u2069", "\u2028", "\ufeff", "\r\n\r\n"]
)
def test_odd_characters_are_text(target, text):
    for stream in (False, True):
        answer = target.complete(text, echo=True, max_tokens=1, stream=stream)
        assert answer.status_code == 200
        assert json.dumps(text)[1:-1] in answer.text or text in answer.json()["choices"][0]["text"]
    answer = target.complete("x", max_tokens=2, stop=text)
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "/etc/passwd", "..", "", "tiny/../tiny", "a\0b", "\u202e", "x" * 5000],
)
def test_names_of_models_are_names_only(target, name):
    for path, body in (
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
        ("/tokenize", {"prompt": "x"}),
        ("/detokenize", {"tokens": [5]}),
    ):
        error = check_error(target.http.post(path, json={"model": name, **body}), 404)
        assert error["code"] == "model_not_found"
        assert "root:" not in error["message"]


@pytest.mark.parametrize(
    "path", ["../../../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd", "..%2f..%2fetc%2fpasswd", "%00"]
)
@pytest.mark.parametrize("folder", ["/v1/models/", "/page/", "/"])
def test_addresses_of_files_are_not_found(target, folder, path):
    head = f"GET {folder}{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close"
    with target.send(head.encode()) as client:
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert answer.startswith((b"HTTP/1.1 404", b"HTTP/1.1 400")), answer[:200]
    assert b"root:" not in answer


@pytest.mark.parametrize(
    "variables",
    [
        {"messages": []},
        {"__class__": "x"},
        {"self": 1},
        {"raise_exception": "x"},
        {"strftime_now": "%s" * 100},
        {"bos_token": "<s>" * 100},
        {"range": 10**9},
        {"x": {"__globals__": 1}},
        {"x": [1] * 1000},
        {"x": 10**18},
        {"{{ 7*7 }}": 1},
    ],
    ids=lambda it: next(iter(it)),
)
def test_template_variables_that_do_harm(target, variables):
    message = {"role": "user", "content": "{{ ''.__class__.__mro__ }}{% for x in range(9**9) %}"}
    body = {"messages": [message], "chat_template_kwargs": variables}
    error = check_error(target.http.post("/v1/chat/completions", json=body), 400)
    assert error["param"] == "chat_template_kwargs"
    # What a user writes is text, not a template.
    del body["chat_template_kwargs"]
    tokens = target.http.post("/tokenize", json=body).json()["tokens"]
    text = target.http.post("/detokenize", json={"tokens": tokens}).json()["prompt"]
    assert message["content"] in text


DEEP = {"type": "array", "items": {"$ref": "#"}, "minItems": 1}
SCHEMAS = {
    "catastrophic regex": {"type": "string", "pattern": "^(a+)+(b+)+$"},
    "counted regex": {"type": "string", "pattern": "((a{0,99}){0,99}){0,99}"},
    "look-behind": {"type": "string", "pattern": "(?<=a)b"},
    "not a regex": {"type": "string", "pattern": "(((["},
    "recursive": DEEP,
    "refers to itself": {"$ref": "#"},
    "refers to each other": {
        "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
        "$ref": "#/$defs/a",
    },
    "refers to a file": {"$ref": "file:///etc/passwd"},
    "refers to a site": {"$ref": "http://127.0.0.1:1/schema.json"},
    "impossible": {"type": "string", "enum": []},
    "not a schema": {"type": "nonsense"},
    "huge": {"type": "string", "minLength": 10**9},
}


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=list(SCHEMAS))
def test_schemas_that_cost_or_do_not_end(target, schema):
    body = {
        "messages": [{"role": "user", "content": "x"}],
        "max_tokens": 8,
        "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}},
    }
    began = time.monotonic()
    answer = target.http.post("/v1/chat/completions", json=body)
    if answer.status_code == 200:
        assert answer.json()["choices"][0]["finish_reason"] in ("length", "stop")
    else:
        assert check_error(answer, 400)["param"] == "response_format"
    assert time.monotonic() - began < 30  # the client's own patience; a hang is what is looked for
    assert target.is_healthy()


def _raw(target, body: str, path: str = "/v1/completions"):
    return target.http.post(path, content=body, headers={"Content-Type": "application/json"})
