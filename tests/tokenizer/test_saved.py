"""What a pack stores of a tokenizer gives the ids and texts that transformers gives."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from sparseinfer.errors import CheckpointError, PromptError, UnsupportedError
from sparseinfer.tokenizer import Tokenizer, load_tokenizer
from sparseinfer.tokenizer.backends import SAVED_FILE, SavedBackend, TransformersBackend

TEXTS = ["", "a", " the cat sat", "déjà vu 😀\n\n  x", "日本語", "<s> a </s>", "\t \u200b"]
CHATS = [
    [{"role": "user", "content": "hello"}],
    [{"role": "system", "content": "déjà"}, {"role": "user", "content": "<s>"}],
    [{"role": "user", "content": "a", "name": None}, {"role": "assistant", "content": "b"}],
]


@pytest.fixture
def saved(tokenizer, tmp_path) -> Tokenizer:
    tokenizer.save(tmp_path)
    found = load_tokenizer(tmp_path)
    assert isinstance(found.backend, SavedBackend)
    return found


@pytest.mark.parametrize("text", TEXTS)
def test_same_ids_offsets_and_text(tokenizer, saved, text):
    ids = tokenizer.encode(text)
    assert saved.encode(text) == ids
    assert saved.encode_with_offsets(text) == tokenizer.encode_with_offsets(text)
    assert saved.decode(ids) == tokenizer.decode(ids)
    assert saved.special_prefix == tokenizer.special_prefix


def test_same_hash(tokenizer, saved):
    assert saved.sha256 == tokenizer.sha256


def test_same_stream(tokenizer, saved):
    ids = tokenizer.encode("the cat 日本語 déjà 😀 a")
    streams = [one.stream(ids[:2]) for one in (tokenizer, saved)]
    pieces = [[stream.push(token) for token in ids[2:]] for stream in streams]
    assert pieces[0] == pieces[1]


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>",
        "{{ bos_token }}{% for m in messages %}{{ m['role'] + ':' + m['content'] | trim }}"
        "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}",
        "{{ messages | tojson }}{% generation %}x{% endgeneration %}",
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content }}"
        "{% endfor %}",
    ],
    ids=["plain", "special", "tojson", "break"],
)
def test_same_chats(folder_with_template, tmp_path, template, chat):
    original = load_tokenizer(folder_with_template(template))
    out = tmp_path / "saved"
    out.mkdir()
    original.save(out)
    assert isinstance(original.backend, TransformersBackend)
    assert load_tokenizer(out).encode_chat(chat) == original.encode_chat(chat)


def test_no_chat_template(folder_with_template, tmp_path):
    load_tokenizer(folder_with_template(None)).save(tmp_path)
    found = load_tokenizer(tmp_path)
    assert not found.has_chat_template
    with pytest.raises(PromptError, match="no chat template"):
        found.encode_chat(CHATS[0])


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('roles must\nalternate') }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ messages.append(1) }}{{ messages.clear() }}",
        "{% include '/etc/passwd' %}",
        "{% if %}",
    ],
)
def test_templates_run_in_the_same_sandbox(folder_with_template, tmp_path, template):
    load_tokenizer(folder_with_template(template)).save(tmp_path)
    found = load_tokenizer(tmp_path)
    for messages in ([dict(CHATS[0][0])], []):
        kept = [dict(message) for message in messages]
        with pytest.raises(PromptError, match="chat template refuses") as caught:
            found.encode_chat(messages)
        assert "\n" not in str(caught.value)
        assert messages == kept


def test_several_templates_keep_their_default(make_model, tmp_path):
    original = load_tokenizer(make_model())
    hf = original.backend.hf
    before = hf.chat_template
    try:
        hf.chat_template = {"default": "one{{ messages[0].content }}", "tool_use": "two"}
        original.save(tmp_path)
        expected = original.encode_chat(CHATS[0])
    finally:
        hf.chat_template = before
    assert load_tokenizer(tmp_path).encode_chat(CHATS[0]) == expected


def test_text_needs_no_transformers(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    code = (
        "import sys, sparseinfer; t = sparseinfer.load_tokenizer(sys.argv[1]); "
        "t.decode(t.encode('the cat')); assert 'transformers' not in sys.modules; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        (SAVED_FILE, "", "no usable tokenizer"),
        (SAVED_FILE, "[]", "no usable tokenizer"),
        (SAVED_FILE, "[" * 10_000, "no usable tokenizer"),
        (SAVED_FILE, '{"version": 1}', "no usable tokenizer"),
        (SAVED_FILE, '{"version": 2, "special_tokens": {}, "chat_template": null}', "version 2"),
        (SAVED_FILE, '{"version": 1, "special_tokens": [], "chat_template": null}', "settings"),
        (SAVED_FILE, '{"version": 1, "special_tokens": {}, "chat_template": 5}', "settings"),
        ("tokenizer.json", "{}", "no usable tokenizer"),
        ("tokenizer.json", None, "no usable tokenizer"),
    ],
)
def test_damaged_files(make_model, tmp_path, name, content, match):
    load_tokenizer(make_model()).save(tmp_path)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError, match=match) as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_settings_of_truncation_and_padding_are_left_behind(make_model, tmp_path):
    original = load_tokenizer(make_model())
    rust = original.backend.hf.backend_tokenizer
    rust.enable_truncation(2)
    rust.enable_padding(length=20)
    original.save(tmp_path)
    assert rust.truncation is not None  # the caller's own is left as it was
    raw = json.loads((tmp_path / "tokenizer.json").read_text())
    assert (raw["truncation"], raw["padding"]) == (None, None)
    assert len(load_tokenizer(tmp_path).encode("a longer text")) == 13


def test_only_fast_tokenizers_can_be_saved(tmp_path):
    class Slow:
        is_fast = False

    with pytest.raises(UnsupportedError, match="not a fast one"):
        Tokenizer(TransformersBackend(Slow())).save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_token_that_begins_texts_is_known_whether_or_not_it_is_put_there(make_model, tmp_path):
    original = load_tokenizer(make_model())
    original.save(tmp_path)
    assert original.special_prefix == []
    assert original.first_token == load_tokenizer(tmp_path).first_token == (1, "<s>")


def test_a_tokenizer_may_have_no_token_that_begins_texts(make_model, tmp_path):
    original = load_tokenizer(make_model())
    original.backend.hf.bos_token = None
    original.save(tmp_path)
    assert original.first_token is None
    assert load_tokenizer(tmp_path).first_token is None
