"""Tools of a chat, for each way in which models write calls."""

from __future__ import annotations

import json
import random

import numpy as np
import openai
import pytest

from .conftest import Running, check_error, eventually, running
from .events import choices_of, chunks_of
from .scripted import CALLS, END, ScriptedScheduler, byte_tokenizer, saying

HERMES = (
    "{% if tools %}{% for t in tools %}{{ t.function.name }}({{ t.function.parameters | tojson }})"
    "{% endfor %}<tool_call>{% endif %}"
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}{{ m.tool_calls | tojson if m.tool_calls"
    " }}{{ m.tool_call_id }}|{% endfor %}"
)
MISTRAL = HERMES.replace("<tool_call>", "[TOOL_CALLS]")
LLAMA = HERMES.replace("<tool_call>", """<|start_header_id|>'"parameters": '""")

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 8},
                "days": {"$ref": "#/$defs/n"},
            },
            "required": ["city"],
            "additionalProperties": False,
            "$defs": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
        },
    },
}
TIME = {"type": "function", "function": {"name": "time"}}
USER = {"role": "user", "content": "weather?"}

HERMES_TEXT = (
    'Let me look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>'
)
LLAMA_TEXT = '{"name": "weather", "parameters": {"city": "Köln"}}; {"name": "time"}'
MISTRAL_TOKENS = [
    *b"Let me look.",
    CALLS,
    *'[{"name": "weather", "arguments": {"city": "Köln"}}, {"name": "time"}]'.encode(),
]


def speaking(script, template):
    return running(ScriptedScheduler(script, context=2000), byte_tokenizer(template))


CASES = [
    pytest.param(saying(HERMES_TEXT), HERMES, "Let me look.", id="hermes"),
    pytest.param(lambda _request: iter(MISTRAL_TOKENS), MISTRAL, "Let me look.", id="mistral"),
    pytest.param(saying(LLAMA_TEXT), LLAMA, None, id="llama"),
]


def calls_in(server: Running, **fields):
    return server.openai.chat.completions.create(
        model="scripted", messages=[USER], tools=[WEATHER, TIME], **fields
    )


def parsed(choice) -> list[tuple[str, dict]]:
    return [(c.function.name, json.loads(c.function.arguments)) for c in choice.message.tool_calls]


@pytest.mark.parametrize(("script", "template", "text"), CASES)
def test_calls_are_read_whole_and_streamed(script, template, text):
    with speaking(script, template) as server:
        choice = calls_in(server).choices[0]
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content == text
        called = [
            (c.function.name, json.loads(c.function.arguments)) for c in choice.message.tool_calls
        ]
        assert called == [("weather", {"city": "Köln"}), ("time", {})]
        ids = [call.id for call in choice.message.tool_calls]
        assert len(set(ids)) == 2
        with server.openai.chat.completions.stream(
            model="scripted", messages=[USER], tools=[WEATHER, TIME]
        ) as stream:
            final = stream.get_final_completion().choices[0]
        assert (final.message.content or None) == text
        assert final.finish_reason == "tool_calls"
        assert parsed(final) == called


@pytest.mark.parametrize(("script", "template", "text"), CASES)
def test_one_call_where_the_client_wants_no_more(script, template, text):
    with speaking(script, template) as server:
        answer = calls_in(server, parallel_tool_calls=False)
        assert [c.function.name for c in answer.choices[0].message.tool_calls] == ["weather"]
        eventually(lambda: server.scheduler.running == 0)


def test_the_template_sees_tools_and_their_results(echo_server):
    call = {"name": "weather", "arguments": '{"city": "Bonn"}'}
    messages = [
        USER,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "abc", "type": "function", "function": call}],
        },
        {"role": "tool", "tool_call_id": "abc", "content": "rain", "name": "weather"},
    ]
    scheduler = ScriptedScheduler(saying("ok"), context=2000)
    with running(scheduler, byte_tokenizer(HERMES)) as server:
        server.openai.chat.completions.create(model="scripted", messages=messages, tools=[TIME])
        server.openai.chat.completions.create(
            model="scripted", messages=messages, tools=[TIME], tool_choice="none"
        )
    seen, without = scheduler.started
    assert seen.startswith('time({"type": "object", "properties": {}})<tool_call>u:weather?|a:')
    assert '"arguments": {"city": "Bonn"}' in seen
    assert seen.endswith("t:rainabc|")
    assert without.startswith("u:weather?|a:")


def test_text_that_is_no_call_stays_text():
    text = '<tool_call>\n{"name": "unknown", "arguments": {}}\n</tool_call>'
    with speaking(saying(text), HERMES) as server:
        choice = calls_in(server).choices[0]
        assert (choice.message.content, choice.message.tool_calls) == (text, None)
        assert choice.finish_reason == "stop"
        # Without tools nothing is looked for.
        assert server.chat("x").json()["choices"][0]["message"]["content"] == text
        parts = choices_of(chunks_of(server.chat("x", tools=[TIME], stream=True)))[0]
        assert "".join(part["delta"].get("content") or "" for part in parts) == text


def test_call_cut_by_the_limit_stays_text():
    with speaking(saying(HERMES_TEXT), HERMES) as server:
        choice = calls_in(server, max_tokens=40).choices[0]
        assert choice.finish_reason == "length"
        assert choice.message.tool_calls is None
        assert HERMES_TEXT.startswith(choice.message.content)


def obedient(request):
    """Draws from the tokens that are allowed, and ends where it may."""
    drawing = random.Random(request.sampling.seed)
    while True:
        allowed = _ids(request.mask.allowed())
        token = END if END in allowed else drawing.choice(allowed)
        if token != END:
            request.mask.accept(token)
        yield token
        if request.mask.finished:
            return


def _ids(bits) -> list[int]:
    return np.flatnonzero(np.unpackbits(bits, bitorder="little")).tolist()


@pytest.mark.parametrize("template", [HERMES, MISTRAL, LLAMA], ids=["hermes", "mistral", "llama"])
@pytest.mark.parametrize("choice", ["required", "weather"])
def test_demanded_calls_are_made_whatever_the_model(template, choice):
    named = {"type": "function", "function": {"name": choice}}
    with speaking(obedient, template) as server:
        answer = calls_in(
            server, tool_choice="required" if choice == "required" else named, n=8, seed=3
        )
    for made in answer.choices:
        assert made.finish_reason == "tool_calls", made
        assert made.message.content is None
        for call in made.message.tool_calls:
            arguments = json.loads(call.function.arguments)
            if call.function.name == "weather":
                assert set(arguments) <= {"city", "days"}
                assert arguments.get("days", 0) in range(10)
            else:
                assert (choice, arguments) == ("required", {})


def test_templates_that_know_no_tools_refuse_them(echo_server):
    with pytest.raises(openai.BadRequestError, match="takes no tools") as refused:
        calls_in(echo_server)
    assert refused.value.param == "tools"
    unknown = "{{ tools }}{{ messages[0].content }}"
    with speaking(saying("x"), unknown) as server:
        error = check_error(server.chat("x", tools=[TIME]), 400)
        assert "cannot read" in error["message"]
        assert server.chat("x", tools=[TIME], tool_choice="none").status_code == 200


def test_a_tool_with_a_bad_schema_is_refused_where_it_is_followed():
    bad = {"type": "function", "function": {"name": "f", "parameters": {"type": "nonsense"}}}
    with speaking(saying("x"), HERMES) as server:
        error = check_error(server.chat("x", tools=[bad], tool_choice="required"), 400)
        assert error["param"] == "tools"


def test_tools_and_a_response_format_do_not_go_together(echo_server):
    fields = {"tools": [TIME], "response_format": {"type": "json_object"}}
    error = check_error(echo_server.chat("x", **fields), 400)
    assert error["param"] == "response_format"
