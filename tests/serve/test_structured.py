"""Answers held to a JSON schema."""

from __future__ import annotations

import json
import time
from typing import Literal

import jsonschema
import pytest
from pydantic import BaseModel

from sparseinfer.serve.errors import ApiError
from sparseinfer.serve.vocabulary import Vocabulary

from .conftest import check_error, running
from .scripted import CONFIG, END, ScriptedScheduler, byte_tokenizer
from .test_tools import obedient

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "tags": {"type": "array", "items": {"enum": ["a", "ü"]}, "maxItems": 2},
    },
    "required": ["name", "tags"],
    "additionalProperties": False,
}


def following(schema: dict) -> dict:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary(byte_tokenizer(), CONFIG.vocab_size, {END})


def test_answers_fit_the_schema():
    with running(ScriptedScheduler(obedient)) as server:
        answers = server.chat("x", response_format=following(SCHEMA), n=10, seed=1).json()
    for choice in answers["choices"]:
        assert choice["finish_reason"] == "stop"
        jsonschema.validate(json.loads(choice["message"]["content"]), SCHEMA)
    assert len({choice["message"]["content"] for choice in answers["choices"]}) > 5


def test_any_object():
    with running(ScriptedScheduler(obedient)) as server:
        answer = server.chat("x", response_format={"type": "json_object"}, seed=5).json()
        assert isinstance(json.loads(answer["choices"][0]["message"]["content"]), dict)


def test_openai_client_parses_models():
    class Point(BaseModel):
        x: Literal[1, 2]
        known: bool

    with running(ScriptedScheduler(obedient)) as server:
        answer = server.openai.chat.completions.parse(
            model="scripted",
            messages=[{"role": "user", "content": "x"}],
            response_format=Point,
            max_tokens=400,
            seed=4,
        )
        assert isinstance(answer.choices[0].message.parsed, Point)


REFUSED = [
    {"type": "nonsense"},
    {"$ref": "#"},
    {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]},
    {"$ref": "https://example.com/schema.json"},
    {"$ref": "#/$defs/none"},
    {"$ref": "file:///etc/passwd"},
    {"enum": []},
    {"not": {}},
    {"type": "string", "pattern": "("},
    {"type": "string", "pattern": "(" * 3000},
    {"type": "string", "pattern": "\\ud800"},
    {"type": "string", "format": "nonsense"},
    {"allOf": [{"type": "string"}, {"type": "integer"}]},
    {"type": "object", "required": ["a"], "properties": {"a": False}},
]


@pytest.mark.parametrize("schema", REFUSED, ids=lambda schema: json.dumps(schema)[:40])
def test_schema_that_cannot_be_followed_is_refused(echo_server, schema):
    error = check_error(echo_server.chat("x", response_format=following(schema)), 400)
    assert error["param"] == "response_format"
    assert echo_server.is_healthy()


def nested(depth: int) -> dict:
    schema: dict = {}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


COSTLY = [
    {"type": "string", "pattern": "^(a+)+$"},
    {"type": "string", "pattern": "(a|b|ab)*" * 5000},
    {"type": "string", "pattern": "(.{0,1000}){0,1000}x"},
    {"type": "string", "pattern": "(x+x+)+y" * 200},
    {"type": "string", "minLength": 10**6, "maxLength": 10**9},
    {"type": "array", "minItems": 10**6, "items": {"type": "integer"}},
    {"type": "object", "properties": {str(n): {"type": "integer"} for n in range(1500)}},
    {"enum": ["x" * 60 + str(n) for n in range(900)]},
    {"anyOf": [{"type": "string", "pattern": f"a*b{n}(c|d)*e"} for n in range(800)]},
    {"type": "integer", "minimum": -(10**300), "maximum": 10**300},
    {
        "$defs": {"n": {"type": "array", "items": {"anyOf": [{"$ref": "#/$defs/n"}] * 30}}},
        "$ref": "#/$defs/n",
    },
    nested(60),
]


@pytest.mark.parametrize("schema", COSTLY, ids=lambda schema: json.dumps(schema)[:40])
def test_costly_schemas_cost_little(vocabulary, schema):
    began, refused = time.thread_time(), None
    try:
        mask = vocabulary.json_grammar(schema, "response_format").mask()
        for token in b'{"aaaaaaaaaaaaaaaa':
            mask.allowed()
            mask.accept(token)
    except ApiError as error:
        refused = error
    assert refused is None or (refused.status == 400 and len(refused.message) < 400)
    # Far more than it takes, and far less than what would stall others.
    assert time.thread_time() - began < 10


def test_large_schemas_are_refused(echo_server):
    schema = {"enum": ["x" * 70_000]}
    error = check_error(echo_server.chat("x", response_format=following(schema)), 400)
    assert "65536" in error["message"]


def test_options_of_the_grammar_library_are_refused(echo_server):
    schema = {"type": "object", "x-guidance": {"whitespace_flexible": False}}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    for field, value in (("response_format", wanted), ("tools", [tool])):
        body = {"messages": [{"role": "user", "content": "x"}], field: value}
        error = check_error(echo_server.http.post("/v1/chat/completions", json=body), 400)
        assert error["param"].startswith(field)
        assert "x-guidance" in error["message"]


def test_very_deep_schemas_are_refused(echo_server):
    for depth in (150, 2000):
        schema = '{"properties": {"a": ' * depth + "{}" + "}}" * depth
        body = (
            '{"messages": [{"role": "user", "content": "x"}], "response_format": '
            '{"type": "json_schema", "json_schema": {"name": "x", "schema": ' + schema + "}}}"
        )
        answer = echo_server.http.post(
            "/v1/chat/completions", content=body, headers={"Content-Type": "application/json"}
        )
        check_error(answer, 400)


def test_a_mask_that_breaks_later_breaks_alone(vocabulary):
    grammar = vocabulary.json_grammar({"type": "string", "pattern": "a*"}, "response_format")
    mask = grammar.mask()
    mask.accept(ord("x"))  # what the grammar does not allow breaks the mask
    with pytest.raises(ApiError) as refused:
        mask.allowed()
    assert (refused.value.status, refused.value.param) == (400, "response_format")
    # Others made of the same grammar are not touched.
    assert grammar.mask().allowed() is not None
