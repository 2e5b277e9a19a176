"""What users do, with the client they use."""

from __future__ import annotations

import json

import openai
import pytest

from sparseinfer.errors import NumericalError

from .conftest import running
from .scripted import ScriptedScheduler, byte_tokenizer, endless, noise


def ask(server, content, **fields):
    return server.openai.chat.completions.create(
        model="scripted", messages=[{"role": "user", "content": content}], **fields
    )


def complete(server, prompt, **fields):
    return server.openai.completions.create(model="scripted", prompt=prompt, **fields)


def test_models(echo_server):
    assert [m.id for m in echo_server.openai.models.list()] == ["scripted"]
    model = echo_server.openai.models.retrieve("scripted")
    assert (model.object, model.owned_by) == ("model", "sparseinfer")
    with pytest.raises(openai.NotFoundError) as refused:
        echo_server.openai.models.retrieve("../../etc")
    assert refused.value.code == "model_not_found"


def test_completion(echo_server):
    answer = complete(echo_server, "Grüße", max_tokens=20)
    assert answer.id.startswith("cmpl-")
    assert answer.object == "text_completion"
    assert answer.model == "scripted"
    choice = answer.choices[0]
    assert (choice.text, choice.index, choice.finish_reason) == ("Grüße", 0, "stop")
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (7, 7, 14)


def test_completion_defaults_to_16_tokens_or_what_the_context_leaves(echo_server):
    answer = complete(echo_server, "a" * 40)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("a" * 16, "length")
    assert complete(echo_server, "a" * 510).usage.completion_tokens == 2


@pytest.mark.parametrize("prompt", ["hi", ["hi"], [104, 105], [[104, 105]]])
def test_prompt_forms(echo_server, prompt):
    assert complete(echo_server, prompt).choices[0].text == "hi"


def test_character_cut_by_the_limit_is_left_out(echo_server):
    answer = complete(echo_server, "a😀", max_tokens=4)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("a", "length")
    assert answer.usage.completion_tokens == 4


def test_chat(echo_server):
    answer = ask(echo_server, "hé")
    assert answer.id.startswith("chatcmpl-")
    assert answer.object == "chat.completion"
    message = answer.choices[0].message
    assert (message.role, message.content) == ("assistant", "u:hé|a:")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == 2 * len("u:hé|a:".encode())


def test_chat_text_parts_and_developer_role(echo_server):
    answer = echo_server.openai.chat.completions.create(
        model="scripted",
        messages=[
            {"role": "developer", "content": "be"},
            {"role": "user", "content": [{"type": "text", "text": t} for t in ("x", "y")]},
        ],
    )
    assert answer.choices[0].message.content == "s:be|u:x\ny|a:"


def test_chat_limit_is_what_the_context_leaves():
    with running(ScriptedScheduler(endless, context=100)) as server:
        answer = ask(server, "hello")
        assert answer.usage.total_tokens == 100
        assert answer.choices[0].finish_reason == "length"
        for field in ("max_tokens", "max_completion_tokens"):
            assert ask(server, "hello", **{field: 3}).usage.completion_tokens == 3


def test_chat_stream(echo_server):
    chunks = list(ask(echo_server, "😀é", stream=True))
    assert {c.object for c in chunks} == {"chat.completion.chunk"}
    assert len({(c.id, c.created) for c in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(c.choices[0].delta.role is None for c in chunks[1:])
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "u:😀é|a:"
    assert [c.choices[0].finish_reason for c in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert all(c.usage is None for c in chunks)


@pytest.mark.parametrize("route", ["completions", "chat/completions"])
def test_stream_usage_comes_last_with_no_choices(echo_server, route):
    body = {"prompt": "abc"} if route == "completions" else {"messages": [_user("abc")]}
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    answer = echo_server.http.post(f"/v1/{route}", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = answer.text.removesuffix("\n\n").split("\n\n")
    assert events[-1] == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    assert chunks[-1]["choices"] == []
    usage = chunks[-1]["usage"]
    assert usage["prompt_tokens"] == usage["completion_tokens"] == usage["total_tokens"] / 2
    assert all(chunk["usage"] is None and chunk["choices"] for chunk in chunks[:-1])


def test_stop(echo_server):
    answer = complete(echo_server, "one two three", stop=["three", "wo"])
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("one t", "stop")
    assert answer.usage.completion_tokens == len("one two")
    streamed = complete(echo_server, "one two three", stop="two", stream=True)
    assert "".join(c.choices[0].text for c in streamed) == "one "


def test_unicode_line_ends_do_not_break_events(echo_server):
    text = "a\u2028b\u2029c\x85d\x0ce\r\nf"
    streamed = complete(echo_server, text, max_tokens=40, stream=True)
    assert "".join(c.choices[0].text for c in streamed) == text
    body = {"prompt": text, "max_tokens": 40, "stream": True}
    with echo_server.http.stream("POST", "/v1/completions", json=body) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)


def test_text_that_only_begins_a_stop_string_is_not_lost(echo_server):
    assert complete(echo_server, "one tw", stop="two").choices[0].text == "one tw"


def test_seed_and_temperature():
    with running(ScriptedScheduler(noise)) as server:

        def text(**fields):
            return complete(server, "a", max_tokens=30, **fields).choices[0].text

        assert text(seed=5) == text(seed=5) == text(seed=5, temperature=1, top_p=1)
        assert text(seed=5) != text(seed=6)
        assert text() != text()
        assert text(temperature=0) == text(temperature=0, seed=9)
        assert text(temperature=0) == text(seed=1, extra_body={"top_k": 1})
        assert text(temperature=0) == text(seed=1, extra_body={"min_p": 1})


def test_errors_map_to_client_exceptions(echo_server):
    with pytest.raises(openai.NotFoundError) as unknown:
        echo_server.openai.completions.create(model="gpt-9", prompt="x")
    assert unknown.value.code == "model_not_found"
    assert unknown.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError) as refused:
        complete(echo_server, "x", n=17)
    assert refused.value.param == "n"
    with pytest.raises(openai.BadRequestError) as long:
        complete(echo_server, "x" * 600)
    assert long.value.code == "context_length_exceeded"
    assert "600" in long.value.message
    assert "512" in long.value.message
    with pytest.raises(openai.BadRequestError) as much:
        complete(echo_server, "x" * 12, max_tokens=501)
    assert much.value.code == "context_length_exceeded"
    for count in ("512", "513", "12", "501"):
        assert count in much.value.message


def test_full_queue_is_a_rate_limit():
    with running(ScriptedScheduler()) as server:
        server.service.gate.requests += 65
        with pytest.raises(openai.RateLimitError) as refused:
            complete(server, "x")
        assert refused.value.code == "queue_full"
        server.service.gate.requests -= 65
        assert server.is_healthy()


def test_model_without_chat_template():
    with running(ScriptedScheduler(), byte_tokenizer(template=None)) as server:
        with pytest.raises(openai.BadRequestError, match="no chat template") as refused:
            ask(server, "x")
        assert refused.value.param == "messages"


def test_template_may_refuse(echo_server):
    with pytest.raises(openai.BadRequestError, match="system comes first"):
        echo_server.openai.chat.completions.create(
            model="scripted", messages=[_user("x"), {"role": "system", "content": "y"}]
        )


def test_broken_model_fails_the_request_not_the_server():
    def nan(request):
        if bytes(request.ids) == b"fine":
            yield from request.ids
        yield from b"ok"[: request.ids[0] - 48]
        raise NumericalError("the model computed NaN logits")

    with running(ScriptedScheduler(nan)) as server:
        for fields in ({"stream": True}, {}):
            with pytest.raises(openai.InternalServerError, match="NaN logits"):
                complete(server, "0", **fields)
        texts = []
        with pytest.raises(openai.APIError, match="NaN logits"):
            texts.extend(c.choices[0].text for c in complete(server, "2", stream=True))
        raw = server.complete("2", stream=True).text
        assert "[DONE]" not in raw
        assert json.loads(raw.strip().split("\n\n")[-1][6:])["error"]["type"] == "server_error"
        assert complete(server, "fine", max_tokens=4).choices[0].text == "fine"


def test_defect_in_the_template_is_an_error_of_that_request(monkeypatch):
    tokenizer = byte_tokenizer()
    monkeypatch.setattr(tokenizer, "encode_chat", lambda messages, **_: 1 // 0)
    with running(ScriptedScheduler(), tokenizer) as server:
        with pytest.raises(openai.InternalServerError) as failed:
            ask(server, "x")
        assert failed.value.type == "server_error"
        assert server.is_healthy()
        assert server.taken == 0


def test_defect_in_the_engine_is_not_shown_to_the_client(caplog):
    def defect(request):
        raise RuntimeError("secret detail")
        yield 0

    with running(ScriptedScheduler(defect)) as server:
        answer = server.complete("x")
        assert answer.status_code == 500
        assert "secret" not in answer.text
        assert "secret detail" in caplog.text


def _user(content):
    return {"role": "user", "content": content}
