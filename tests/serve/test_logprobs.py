"""Log-probabilities of prompts and answers, in both shapes, whole and streamed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .conftest import check_error, running
from .events import choices_of, chunks_of, joined_completion
from .scripted import END, ScriptedScheduler, byte_tokenizer, logprob, saying


def legacy(server, prompt, **fields):
    choice = server.complete(prompt, **fields).json()["choices"][0]
    return choice, choice["logprobs"]


def test_legacy_shape(echo_server):
    choice, shown = legacy(echo_server, "ab", logprobs=2)
    assert choice["text"] == "ab"
    # The token that ended the text is shown: a harness that asks for one token needs one entry.
    assert shown["tokens"] == ["a", "b", "<end>"]
    assert shown["text_offset"] == [0, 1, 2]
    assert shown["token_logprobs"] == [logprob(97), logprob(98), logprob(END)]
    best = {"\x00": logprob(0), "\x01": logprob(1)}
    assert shown["top_logprobs"][0] == {**best, "a": logprob(97)}


def test_legacy_without_alternatives_has_the_token_itself(echo_server):
    _, shown = legacy(echo_server, "a", logprobs=0, max_tokens=1)
    assert shown["top_logprobs"] == [{"a": logprob(97)}]


def test_parts_of_characters_are_shown_as_bytes(echo_server):
    _, shown = legacy(echo_server, "é€", logprobs=0)
    names = ["bytes:\\xc3", "bytes:\\xa9", "bytes:\\xe2", "bytes:\\x82", "bytes:\\xac", "<end>"]
    assert shown["tokens"] == names
    assert shown["text_offset"] == [0, 0, 1, 1, 1, 2]
    entry = echo_server.chat("é", logprobs=True).json()["choices"][0]["logprobs"]["content"][2]
    assert (entry["token"], entry["bytes"]) == ("\\xc3", [0xC3])


def test_echo_shows_the_prompt_first(echo_server):
    choice, shown = legacy(echo_server, "aé", logprobs=1, echo=True, max_tokens=2)
    assert choice["text"] == "aéa"  # the second token is half a character
    assert shown["tokens"] == ["a", "bytes:\\xc3", "bytes:\\xa9", "a", "bytes:\\xc3"]
    assert shown["text_offset"] == [0, 1, 1, 2, 3]
    assert shown["token_logprobs"] == [None, *map(logprob, [0xC3, 0xA9, 97, 0xC3])]
    assert shown["top_logprobs"][0] is None
    assert shown["top_logprobs"][1] == {"\x00": logprob(0), "bytes:\\xc3": logprob(0xC3)}


@pytest.mark.parametrize("logprobs", [None, 1])
def test_prompt_alone(echo_server, logprobs):
    answer = echo_server.complete("abc", logprobs=logprobs, echo=True, max_tokens=0).json()
    choice = answer["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("abc", "length")
    assert answer["usage"]["completion_tokens"] == 0
    if logprobs is None:
        assert choice["logprobs"] is None
    else:
        assert choice["logprobs"]["token_logprobs"] == [None, logprob(98), logprob(99)]


def test_prompt_alone_needs_echo(echo_server):
    assert check_error(echo_server.complete("abc", max_tokens=0), 400)["param"] == "max_tokens"


def test_prompt_of_ids_is_echoed_as_text(echo_server):
    body = {"prompt": list("é!".encode()), "echo": True, "logprobs": 0, "max_tokens": 1}
    choice = echo_server.http.post("/v1/completions", json=body).json()["choices"][0]
    assert choice["text"] == "é!"
    assert choice["logprobs"]["text_offset"] == [0, 0, 1, 2]


def test_prompt_as_long_as_the_context_can_be_scored_but_not_continued(echo_server):
    prompt = "a" * 512
    scored = echo_server.complete(prompt, echo=True, max_tokens=0)
    assert scored.status_code == 200
    error = check_error(echo_server.complete(prompt, echo=True, max_tokens=1), 400)
    assert error["code"] == "context_length_exceeded"


def test_chat_shape(echo_server):
    answer = echo_server.openai.chat.completions.create(
        model="scripted",
        messages=[{"role": "user", "content": "é"}],
        logprobs=True,
        top_logprobs=2,
    )
    content = answer.choices[0].logprobs.content
    # Without the token that ended the text: the bytes are those of the message.
    assert b"".join(bytes(entry.bytes) for entry in content).decode() == "u:é|a:"
    assert [(top.token, top.logprob) for top in content[0].top_logprobs] == [
        ("\x00", logprob(0)),
        ("\x01", logprob(1)),
    ]
    assert echo_server.chat("x").json()["choices"][0]["logprobs"] is None


def test_tokens_behind_a_stop_string_are_not_shown(echo_server):
    choice, shown = legacy(echo_server, "one two", logprobs=0, stop="e t")
    assert choice["text"] == "on"
    assert shown["tokens"] == ["o", "n"]


def test_openai_client_reads_them(echo_server):
    answer = echo_server.openai.completions.create(
        model="scripted", prompt="ab", logprobs=1, echo=True, max_tokens=1
    )
    assert answer.choices[0].logprobs.tokens == ["a", "b", "a"]


LETTERS = st.sampled_from("abé€😀 ")


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(LETTERS, min_size=1, max_size=20),
    stops=st.lists(st.text(LETTERS, min_size=1, max_size=3), max_size=2),
    echo=st.booleans(),
    max_tokens=st.integers(1, 40),
)
def test_streamed_equals_whole(echo_server, text, stops, echo, max_tokens):
    fields = {"stop": stops, "echo": echo, "max_tokens": max_tokens, "logprobs": 1}
    whole, shown = legacy(echo_server, text, **fields)
    parts = choices_of(chunks_of(echo_server.complete(text, **fields, stream=True)))
    joined = joined_completion(parts[0])
    assert joined == {name: whole[name] for name in joined}
    # Offsets point into the text, and go up.
    assert shown["text_offset"] == sorted(shown["text_offset"])
    assert all(0 <= offset <= len(whole["text"]) for offset in shown["text_offset"])


def test_not_with_a_tokenizer_whose_tokens_are_unknown(monkeypatch):
    tokenizer = byte_tokenizer()
    monkeypatch.setattr(type(tokenizer.backend), "serialized", None)
    with running(ScriptedScheduler(saying("x")), tokenizer) as server:
        assert check_error(server.complete("x", logprobs=1), 400)["param"] == "logprobs"
        format = {"type": "json_object"}
        error = check_error(server.chat("x", response_format=format), 400)
        assert error["param"] == "response_format"
        assert server.complete("x").status_code == 200


def test_those_of_prompts_are_counted(echo_server, monkeypatch):
    monkeypatch.setattr("sparseinfer.serve.prompts.MAX_PROMPT_LOGPROBS", 12)
    asked = {"echo": True, "logprobs": 2, "max_tokens": 1}
    assert echo_server.complete("abcd", **asked).status_code == 200
    for prompt, more in (("abcde", {}), (["abc", "de"], {}), ("abc", {"n": 2})):
        error = check_error(echo_server.complete(prompt, **asked, **more), 400)
        assert error["param"] == "logprobs"
        assert "at most 12" in error["message"]
    # Without the prompt there are none.
    assert echo_server.complete("abcde", logprobs=2, max_tokens=1).status_code == 200
