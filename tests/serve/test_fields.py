"""Every field with values that are refused by name, and with those that ask for nothing."""

from __future__ import annotations

import json
import re

import pytest

from .conftest import JSON, check_error

FUNCTION = {"type": "function", "function": {"name": "f"}}


def call(arguments: str) -> dict:
    return {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}


CALL = call("{}")
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
    ("n", 0),
    ("n", 17),
    ("n", True),
    ("n", 10**6),
    ("logprobs", "1"),
    ("presence_penalty", 2.5),
    ("presence_penalty", -2.5),
    ("frequency_penalty", "0"),
    ("repetition_penalty", 0),
    ("repetition_penalty", 11),
    ("logit_bias", {"5": 101}),
    ("logit_bias", {"5": "1"}),
    ("logit_bias", {"5": True}),
    ("logit_bias", {"258": 1}),
    ("logit_bias", {"-1": 1}),
    ("logit_bias", {"a": 1}),
    ("logit_bias", {"\u0665": 1}),
    ("logit_bias", {"05": 1}),
    ("logit_bias", {str(n): 1 for n in range(1025)}),
    ("logit_bias", [1]),
    ("ignore_eos", 1),
    ("sparsity", 0),
    ("sparsity", "false"),
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
    ("prompt", [258]),
    ("prompt", [[1], [258]]),
    ("prompt", [10**30]),
    ("prompt", [True]),
    ("prompt", [1.0]),
    ("prompt", [1, "a"]),
    ("prompt", [[1, "a"]]),
    ("prompt", [["a"]]),
    ("prompt", ["a", ""]),
    ("prompt", ["a", [1]]),
    ("prompt", ["a", 1]),
    ("prompt", ["a"] * 129),
    ("best_of", 0),
    ("best_of", 17),
    ("best_of", 10**6),
    ("logprobs", -1),
    ("logprobs", 21),
    ("logprobs", True),
    ("logprobs", 1.0),
    ("echo", 1),
    ("suffix", "x"),
    ("max_completion_tokens", 5),
    ("messages", []),
]
CHAT_FIELDS = [
    ("max_completion_tokens", 0),
    ("logprobs", 1),
    ("top_logprobs", 2),
    ("top_logprobs", 21),
    ("tools", [{"type": "function"}]),
    ("tools", [FUNCTION]),
    ("tools", [{**FUNCTION, "type": "retrieval"}]),
    ("tools", [{"type": "function", "function": {"name": "no spaces"}}]),
    ("tools", [{"type": "function", "function": {"name": "f", "strict": True}}]),
    ("tools", [FUNCTION, FUNCTION]),
    ("tools", [FUNCTION] * 129),
    ("tools", "f"),
    ("tool_choice", "required"),
    ("tool_choice", "f"),
    ("tool_choice", {"type": "function", "function": {"name": "f"}}),
    ("parallel_tool_calls", 0),
    ("response_format", {"type": "xml"}),
    ("response_format", {"type": "json_schema"}),
    ("response_format", {"type": "json_object", "json_schema": {"name": "a", "schema": {}}}),
    ("response_format", {"type": "json_schema", "json_schema": {"name": "a"}}),
    ("response_format", "json"),
    ("modalities", ["audio"]),
    ("chat_template_kwargs", {"unknown": 1}),
    ("chat_template_kwargs", {"messages": 1}),
    ("chat_template_kwargs", {"add_generation_prompt": False}),
    ("chat_template_kwargs", {"bos_token": "x"}),
    ("chat_template_kwargs", {"note": 10**9}),
    ("chat_template_kwargs", {"note": 0.5}),
    ("chat_template_kwargs", {"note": "x" * 2000}),
    ("chat_template_kwargs", {"note": ["x"]}),
    ("chat_template_kwargs", {str(n): 1 for n in range(17)}),
    ("chat_template_kwargs", [1]),
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
    ({"role": "tool", "content": "x"}, "tool_call_id"),
    ({"role": "tool", "tool_call_id": "x"}, "content"),
    ({"role": "wizard", "content": "x"}, "role"),
    ({"role": "user", "content": "x", "tool_call_id": "x"}, "tool_call_id"),
    ({"role": "user", "content": "x", "tool_calls": [CALL]}, "tool_calls"),
    ({"role": "assistant", "tool_calls": [call("{")]}, "tool_calls[0].function.arguments"),
    ({"role": "assistant", "tool_calls": [call("[]")]}, "tool_calls[0].function.arguments"),
    ({"role": "assistant", "tool_calls": [call("[" * 5000)]}, "tool_calls[0].function.arguments"),
    ({"role": 5, "content": "x"}, "role"),
    ({"content": "x"}, "role"),
    ({"role": "user", "content": "x", "name": "Ann"}, "name"),
    ({"role": "assistant", "content": "x", "tool_calls": [{}]}, "tool_calls[0].id"),
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
    assert re.split(r"[.\[]", error["param"])[0] == field[:200]


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
    "sparsity": True,
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
