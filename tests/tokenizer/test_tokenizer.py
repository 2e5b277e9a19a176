"""A checkpoint's tokenizer: special tokens, offsets, chat templates, and what is refused."""

from __future__ import annotations

import contextlib
import json
import shutil

import pytest

from sparseinfer.errors import CheckpointError, PromptError
from sparseinfer.tokenizer import load_tokenizer

HELLO = [{"role": "user", "content": "hello"}]


def test_special_prefix_of_a_tokenizer_that_adds_bos(byte_fallback):
    assert byte_fallback.special_prefix == [1]
    assert byte_fallback.special_prefix
    assert byte_fallback.encode("the cat")[0] == 1
    assert 1 not in byte_fallback.encode_with_offsets("the cat")[0]


def test_special_prefix_of_a_tokenizer_that_adds_nothing(byte_level):
    assert byte_level.special_prefix == []
    assert not byte_level.special_prefix


def test_special_prefix_ends_before_the_text_also_where_eos_follows_it(byte_level):
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    from sparseinfer.tokenizer import Tokenizer
    from sparseinfer.tokenizer.backends import TransformersBackend

    hf = byte_level.backend.hf
    rust = type(hf.backend_tokenizer).from_str(hf.backend_tokenizer.to_str())
    rust.post_processor = processors.TemplateProcessing(
        single="<s> <s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    hf = PreTrainedTokenizerFast(tokenizer_object=rust)
    assert Tokenizer(TransformersBackend(hf)).special_prefix == [0, 0]


def test_plain_ids_have_no_special_tokens(byte_fallback, byte_level):
    assert byte_fallback.encode("the cat") == [1, *byte_fallback.encode_plain("the cat")]
    assert byte_level.encode_plain("the cat") == byte_level.encode("the cat")


def test_hashes_tell_tokenizers_apart(byte_fallback, byte_level, metaspace):
    from tokenizers import pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from sparseinfer.tokenizer import Tokenizer
    from sparseinfer.tokenizer.backends import TransformersBackend

    assert len({one.sha256 for one in (byte_fallback, byte_level, metaspace)}) == 3
    assert Tokenizer(byte_level.backend).sha256 == byte_level.sha256

    hf = byte_level.backend.hf
    rust = type(hf.backend_tokenizer).from_str(hf.backend_tokenizer.to_str())
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    same_words = PreTrainedTokenizerFast(tokenizer_object=rust, bos_token="<s>", eos_token="</s>")
    other = Tokenizer(TransformersBackend(same_words))
    assert other.backend.vocabulary == byte_level.backend.vocabulary
    assert other.sha256 != byte_level.sha256


def test_offsets_cover_the_text(byte_level):
    text = "déjà vu 😀"
    ids, offsets = byte_level.encode_with_offsets(text)
    assert ids == byte_level.encode(text)
    assert len(offsets) == len(ids)
    assert offsets[0][0] == 0
    assert offsets[-1][1] == len(text)


def test_chat_template_ends_where_the_answer_begins(make_model):
    tokenizer = load_tokenizer(make_model())
    assert tokenizer.has_chat_template
    assert tokenizer.decode(tokenizer.encode_chat(HELLO)) == "<user>hello\n<assistant>"


def test_no_chat_template(folder_with_template):
    tokenizer = load_tokenizer(folder_with_template(None))
    assert not tokenizer.has_chat_template
    with pytest.raises(PromptError, match="no chat template"):
        tokenizer.encode_chat(HELLO)


@pytest.mark.parametrize(
    "template",
    [
        "{% if %}",
        "{{ raise_exception('roles must\nalternate') }}",
        "{{ 1 // 0 }}",
        "{{ messages[7].content }}",
        "{{ messages[0].nothing.at.all }}",
        "{{ range(10 ** 12) | list }}",
        "{{ messages + 5 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ undefined_function() }}",
        "{{ 'a' * 3 + 5 }}",
    ],
)
def test_template_that_fails(folder_with_template, template):
    tokenizer = load_tokenizer(folder_with_template(template))
    with pytest.raises(PromptError, match="chat template") as caught:
        tokenizer.encode_chat(HELLO)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('touch PWNED').read() }}",
        "{{ self.__init__.__globals__ }}",
        "{{ messages.append(1) }}{{ messages.clear() }}",
        "{{ '{0.__class__.__init__}'.format(messages) }}{{ messages.__reduce__() }}",
        "{% import 'os' as os %}{{ os.system('touch PWNED') }}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_template_cannot_leave_its_sandbox(folder_with_template, monkeypatch, tmp_path, template):
    monkeypatch.chdir(tmp_path)
    tokenizer = load_tokenizer(folder_with_template(template))
    messages = [dict(HELLO[0])]
    with pytest.raises(PromptError) as caught:
        tokenizer.encode_chat(messages)
    assert "\n" not in str(caught.value)
    assert messages == HELLO
    assert not (tmp_path / "PWNED").exists()


def test_folder_without_tokenizer(make_model, tmp_path):
    folder = shutil.copytree(make_model(), tmp_path / "model")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(CheckpointError, match="tokenizer") as caught:
        load_tokenizer(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b""),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b"\xff\xff"),
        ("tokenizer.json", b"[" * 10_000),
        ("tokenizer_config.json", b"{"),
    ],
)
def test_damaged_tokenizer(make_model, tmp_path, name, content):
    folder = shutil.copytree(make_model(), tmp_path / "model")
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match="tokenizer") as caught:
        load_tokenizer(folder)
    assert "\n" not in str(caught.value)


def test_tokenizer_with_code_of_its_own_is_not_run(make_model, tmp_path):
    folder = shutil.copytree(make_model(), tmp_path / "model")
    raw = json.loads((folder / "tokenizer_config.json").read_text())
    raw |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(raw))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'PWNED')!r}, 'w')")
    with contextlib.suppress(CheckpointError):
        load_tokenizer(folder)
    assert not (tmp_path / "PWNED").exists()
