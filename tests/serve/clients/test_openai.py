"""OpenAI's Python client against the real engine."""

from __future__ import annotations

import json
import math
from typing import Annotated, Literal

import jsonschema
import openai
import pytest
import torch
from pydantic import BaseModel, Field

from sparseinfer.engine import Sampling

MODEL = "tiny"
USER = [{"role": "user", "content": "é€"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "minLength": 1, "maxLength": 6},
                "days": {"type": "integer", "minimum": 0, "maximum": 9},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}


def complete(writer, prompt, **fields):
    return writer.openai.completions.create(model=MODEL, prompt=prompt, **fields)


def chat(writer, **fields):
    return writer.openai.chat.completions.create(**{"model": MODEL, "messages": USER, **fields})


def test_models(writer):
    assert [model.id for model in writer.openai.models.list()] == [MODEL]
    assert writer.openai.models.retrieve(MODEL).owned_by == "sparseinfer"
    with pytest.raises(openai.NotFoundError):
        complete(writer, "a", max_tokens=1, extra_body={"model": "other"})


def test_prompts_as_text_and_as_tokens(writer):
    ids = writer.tokenizer.encode("abé")
    answers = [
        complete(writer, prompt, max_tokens=20, temperature=0)
        for prompt in ("abé", ["abé"], ids, [ids, ids])
    ]
    texts = {choice.text for answer in answers for choice in answer.choices}
    assert len(texts) == 1
    assert [choice.index for choice in answers[-1].choices] == [0, 1]
    assert answers[-1].usage.prompt_tokens == 2 * len(ids)


def test_logprobs_are_those_of_the_model(writer):
    prompt = "abé"
    answer = complete(writer, prompt, max_tokens=8, temperature=1, seed=3, logprobs=2, echo=True)
    shown = answer.choices[0].logprobs
    ids = writer.tokenizer.encode(prompt)
    new = writer.alone.generate(ids, max_tokens=8, sampling=Sampling(temperature=1, seed=3))
    ids = ids + list(new)
    log_p = writer.alone.logits(ids).double().log_softmax(-1)
    expected = [float(log_p[at, token]) for at, token in enumerate(ids[1:])]
    assert shown.token_logprobs[0] is None
    # The last one shown may be of the token that ended the text.
    assert shown.token_logprobs[1 : len(ids)] == pytest.approx(expected, abs=1e-4)
    best = torch.sort(log_p, descending=True).values[:, :2]
    for at, top in enumerate(shown.top_logprobs[1 : len(ids)]):
        assert sorted(top.values(), reverse=True)[:2] == pytest.approx(best[at].tolist(), abs=1e-4)
    assert answer.choices[0].text.startswith(prompt)


def test_echo_alone(writer):
    answer = complete(writer, "é€", max_tokens=0, echo=True, logprobs=1)
    assert answer.choices[0].text == "é€"
    assert answer.usage.completion_tokens == 0
    assert len(answer.choices[0].logprobs.tokens) == len("é€".encode())


def test_chat_logprobs(writer):
    answer = chat(writer, max_tokens=9, temperature=0, logprobs=True, top_logprobs=3)
    entries = answer.choices[0].logprobs.content
    content = b"".join(bytes(entry.bytes) for entry in entries)
    assert content.decode(errors="ignore") == answer.choices[0].message.content
    for entry in entries:
        likely = [top.logprob for top in entry.top_logprobs]
        assert likely == sorted(likely, reverse=True)
        assert entry.logprob == likely[0]  # greedy
        assert sum(map(math.exp, likely)) <= 1 + 1e-6


def test_chat_and_its_stream(writer):
    fields = {"max_completion_tokens": 40, "temperature": 1, "seed": 9}
    answer = chat(writer, **fields)
    message = answer.choices[0].message
    assert message.role == "assistant"
    assert message.content
    chunks = list(chat(writer, stream=True, stream_options={"include_usage": True}, **fields))
    assert chunks[-1].usage.total_tokens == answer.usage.total_tokens
    deltas = [choice for chunk in chunks for choice in chunk.choices]
    assert "".join(choice.delta.content or "" for choice in deltas) == message.content
    assert deltas[-1].finish_reason == answer.choices[0].finish_reason


def test_n_and_best_of(writer):
    answer = complete(writer, "ab", n=3, max_tokens=12, seed=1)
    texts = [choice.text for choice in answer.choices]
    assert len(set(texts)) == 3
    assert complete(writer, "ab", max_tokens=12, seed=1).choices[0].text == texts[0]
    best = complete(writer, "ab", n=1, best_of=3, max_tokens=12, seed=1).choices[0].text
    assert best in texts
    chats = chat(writer, n=2, max_tokens=12, seed=1, stream=True)
    assert {choice.index for chunk in chats for choice in chunk.choices} == {0, 1}


def test_stop(writer):
    text = complete(writer, "ab", max_tokens=40, temperature=0).choices[0].text
    stop = text[5:7]
    answer = complete(writer, "ab", max_tokens=40, temperature=0, stop=stop).choices[0]
    assert answer.finish_reason == "stop"
    assert answer.text == text[: text.index(stop)]


def test_json_schema(writer):
    class Point(BaseModel):
        name: Annotated[str, Field(max_length=4)]
        size: Literal[1, 2, 3]
        known: bool

    names = set()
    for seed in range(5):
        answer = writer.openai.chat.completions.parse(
            model=MODEL, messages=USER, response_format=Point, seed=seed, max_tokens=200
        )
        assert isinstance(answer.choices[0].message.parsed, Point)
        assert answer.choices[0].finish_reason == "stop"
        names.add(answer.choices[0].message.parsed.name)
    assert len(names) > 1


def test_tools(writer):
    answer = chat(writer, tools=[WEATHER], tool_choice="required", max_tokens=200, seed=2)
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    for call in choice.message.tool_calls:
        assert call.function.name == "weather"
        jsonschema.validate(json.loads(call.function.arguments), WEATHER["function"]["parameters"])
    # And back: what the client got is what it sends.
    call = choice.message.tool_calls[0]
    messages = [
        *USER,
        choice.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
    ]
    again = chat(writer, messages=messages, tools=[WEATHER], tool_choice="none", max_tokens=5)
    assert again.choices[0].message.tool_calls is None


def test_streamed_tool_calls_are_those_of_no_stream(writer):
    fields = {"tools": [WEATHER], "tool_choice": "required", "max_tokens": 200, "seed": 4}
    fields["parallel_tool_calls"] = False
    (call,) = chat(writer, **fields).choices[0].message.tool_calls
    parts = [
        part
        for chunk in chat(writer, stream=True, **fields)
        for choice in chunk.choices
        for part in choice.delta.tool_calls or []
    ]
    assert "".join(part.function.name or "" for part in parts) == call.function.name
    assert "".join(part.function.arguments or "" for part in parts) == call.function.arguments
