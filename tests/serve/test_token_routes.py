"""/tokenize, /detokenize and /tokenizer_info, also as lm-eval uses them."""

from __future__ import annotations

import pytest

from .conftest import JSON, check_error, running
from .scripted import END, ScriptedScheduler, byte_tokenizer


def post(server, route, **body):
    return server.http.post(f"/{route}", json=body)


def test_text_and_back(echo_server):
    answer = post(echo_server, "tokenize", prompt="hé<end>", return_token_strs=True).json()
    assert answer == {
        "count": 4,
        "max_model_len": 512,
        "tokens": [104, 0xC3, 0xA9, END],
        "token_strs": ["h", "Ã", "©", "<end>"],
    }
    back = post(echo_server, "detokenize", tokens=answer["tokens"]).json()
    assert back == {"prompt": "hé<end>"}
    assert post(echo_server, "detokenize", tokens=[]).json() == {"prompt": ""}


def test_special_tokens_where_the_tokenizer_adds_them():
    tokenizer = byte_tokenizer()
    tokenizer.encode = lambda text: [END, *text.encode()]
    with running(ScriptedScheduler(), tokenizer) as server:
        assert post(server, "tokenize", prompt="a").json()["tokens"] == [END, 97]
        plain = post(server, "tokenize", prompt="a", add_special_tokens=False)
        assert plain.json()["tokens"] == [97]


def test_chat(echo_server):
    messages = [{"role": "user", "content": "x"}]
    for fields, text in (
        ({}, "u:x|a:"),
        ({"add_generation_prompt": False}, "u:x|"),
        ({"chat_template_kwargs": {"note": "!"}}, "u:x|!a:"),
    ):
        ids = post(echo_server, "tokenize", messages=messages, **fields).json()["tokens"]
        assert bytes(ids).decode() == text


@pytest.mark.parametrize(
    ("route", "body", "param"),
    [
        ("tokenize", {}, "prompt"),
        ("tokenize", {"prompt": "x", "messages": [{"role": "user", "content": "x"}]}, "prompt"),
        ("tokenize", {"prompt": 5}, "prompt"),
        ("tokenize", {"prompt": "x", "add_generation_prompt": True}, "add_generation_prompt"),
        ("tokenize", {"prompt": "x", "nonsense": 1}, "nonsense"),
        ("tokenize", {"messages": [{"role": "user"}]}, "messages[0].content"),
        ("tokenize", {"messages": [{"role": "system", "content": "x"}] * 2}, "messages"),
        (
            "tokenize",
            {"messages": [{"role": "user", "content": "x"}], "add_special_tokens": True},
            "add_special_tokens",
        ),
        ("detokenize", {}, "tokens"),
        ("detokenize", {"tokens": [258]}, "tokens"),
        ("detokenize", {"tokens": [10**30]}, "tokens[0]"),
        ("detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("detokenize", {"tokens": [1.5]}, "tokens[0]"),
        ("detokenize", {"tokens": "x"}, "tokens"),
    ],
)
def test_bad_bodies(echo_server, route, body, param):
    assert check_error(post(echo_server, route, **body), 400)["param"] == param


def test_other_models_and_bodies(echo_server):
    assert (
        check_error(post(echo_server, "tokenize", prompt="x", model="y"), 404)["param"] == "model"
    )
    for route in ("tokenize", "detokenize"):
        for body in (b"", b"[", b"[]", b"\xff"):
            answer = echo_server.http.post(f"/{route}", content=body, headers=JSON)
            check_error(answer, 400)


def test_tokenizer_info(echo_server):
    info = echo_server.http.get("/tokenizer_info").json()
    assert (info["eos_token"], info["bos_token"]) == ("<end>", None)
    assert info["chat_template"].startswith("{% for m in messages %}")
    assert info["model_max_length"] == 512


def test_lm_evals_remote_tokenizer(echo_server):
    utils = pytest.importorskip("lm_eval.utils")
    url = f"{echo_server.server.url}/v1/completions"
    assert utils.check_remote_tokenizer_support(url)
    remote = utils.RemoteTokenizer(url)
    assert remote.encode("hé") == [104, 0xC3, 0xA9]
    assert remote.decode([104, END]) == "h<end>"
    assert (remote.eos_token, remote.eos_token_id) == ("<end>", END)
    chat = [{"role": "user", "content": "x"}]
    assert remote.apply_chat_template(chat) == "u:x|a:"
