"""Texts as token ids on disk: whole, bound to what they are made of, refused where damaged."""

import json
import os
import signal

import numpy as np
import pytest
import torch

from sparseinfer.errors import ConfigError, OutputError, SourceError
from sparseinfer.finetune.token_store import (
    IDS,
    JSON,
    JoinedTokens,
    TokenStore,
    build_store,
)


class Letters:
    """A tokenizer whose ids are those of characters, with a beginning-of-text token."""

    sha256 = "letters"
    special_prefix = (1,)

    def encode_plain(self, text):
        return [ord(character) for character in text]


DOCUMENTS = ("abc", "de", "fghi")
STREAM = [1, 97, 98, 99, 2, 1, 100, 101, 2, 1, 102, 103, 104, 105, 2]


def build(folder, documents=DOCUMENTS, tokenizer=None, **changes):
    options = {"vocab_size": 300, "end_of_text": 2, "tokens": None, "source": {"texts": ["t"]}}
    return build_store(folder, documents, tokenizer or Letters(), **(options | changes))


def test_documents_follow_each_other(tmp_path):
    store = build(tmp_path / "s")
    assert len(store) == store.record.tokens == 15
    ids = store.read(0, 15)
    assert ids.dtype == torch.int64
    assert ids.tolist() == STREAM
    assert store.read(3, 4).tolist() == STREAM[3:7]
    assert store.read(15, 0).tolist() == []
    assert store.record.documents == 3
    assert (tmp_path / "s" / IDS).read_bytes() == np.array(STREAM, "<u2").tobytes()
    store.verify()
    again = TokenStore.open(tmp_path / "s")
    assert again.record == store.record
    assert again.read(0, 15).tolist() == STREAM


@pytest.mark.parametrize(("begin", "count"), [(-1, 2), (0, 16), (15, 1), (3, -1)])
def test_nothing_is_read_outside_of_the_stream(tmp_path, begin, count):
    store = build(tmp_path / "s")
    with pytest.raises(IndexError):
        store.read(begin, count)
    with pytest.raises(IndexError):
        JoinedTokens([store]).read(begin, count)


def test_without_an_end_of_text_an_empty_line_is_between_documents(tmp_path):
    store = build(tmp_path / "s", ("a", "b"), end_of_text=None)
    assert store.read(0, 8).tolist() == [1, 97, 10, 10, 1, 98, 10, 10]


def test_large_vocabularies_take_four_bytes(tmp_path):
    store = build(tmp_path / "s", ("a\U0001f600",), vocab_size=150_000)
    assert store.record.dtype == "uint32"
    assert store.read(0, 4).tolist() == [1, 97, 0x1F600, 2]
    assert build(tmp_path / "m", vocab_size=65_536).record.dtype == "uint16"
    assert build(tmp_path / "n", vocab_size=65_537).record.dtype == "uint32"


@pytest.mark.parametrize("tokens", [5, 7, 9, 14])
def test_no_more_is_read_than_asked_for(tmp_path, tokens):
    def endless():
        while True:
            yield from DOCUMENTS
            if len(read) > 6:
                raise AssertionError("reads on")
            read.append(1)

    read = []
    calls = []
    store = build(
        tmp_path / "s", endless(), tokens=tokens, progress=lambda *call: calls.append(call)
    )
    assert store.read(0, len(store)).tolist() == STREAM[:tokens]
    assert read == []
    assert calls[-1] == ("tokenizing", tokens, tokens)


def test_a_finished_store_is_used_again(tmp_path):
    first = build(tmp_path / "s", source={"texts": ("a", "b")}, tokens=10)
    stamp = (tmp_path / "s" / IDS).stat().st_mtime_ns

    def unread():
        raise AssertionError("read again")
        yield

    again = build(tmp_path / "s", unread(), source={"texts": ("a", "b")}, tokens=10)
    assert again.record == first.record
    assert (tmp_path / "s" / IDS).stat().st_mtime_ns == stamp


class Others(Letters):
    sha256 = "others"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokens": 5}, "tokens_asked null, not 5"),
        ({"source": {"texts": ["u"]}}, r'texts \["t"\], not \["u"\]'),
        ({"source": {"texts": ["t"], "more": 1}}, "more absent, not 1"),
        ({"end_of_text": 3}, "end_of_text 2, not 3"),
        ({"vocab_size": 301}, "vocab_size 300, not 301"),
        ({"tokenizer": Others()}, 'tokenizer_sha256 "letters", not "others"'),
    ],
)
def test_a_store_of_something_else_is_refused(tmp_path, changes, words):
    build(tmp_path / "s")
    with pytest.raises(ConfigError, match=rf"holds text of another run \({words}\)"):
        build(tmp_path / "s", **changes)
    assert TokenStore.open(tmp_path / "s").read(0, 15).tolist() == STREAM


def test_too_little_text_is_refused_with_figures(tmp_path):
    with pytest.raises(SourceError, match=r"has 15 tokens, .* needs 1,024: give more text"):
        build(tmp_path / "s", least=1024)
    with pytest.raises(SourceError, match="has 0 tokens"):
        build(tmp_path / "s", ())
    with pytest.raises(ConfigError, match=r"100 tokens are too few: .* 1,024"):
        build(tmp_path / "s", tokens=100, least=1024)
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    with pytest.raises(SourceError, match=r"gives id 105 but the model's vocabulary has 105"):
        build(tmp_path / "s", vocab_size=105)
    assert list(tmp_path.iterdir()) == []


def test_text_that_cannot_be_read_to_its_end_leaves_nothing(tmp_path):
    def broken():
        yield "abc"
        raise SourceError("line 2: not valid JSON")

    with pytest.raises(SourceError, match="line 2"):
        build(tmp_path / "s", broken())
    assert list(tmp_path.iterdir()) == []


def test_a_killed_build_starts_anew(tmp_path):
    def deadly():
        yield "x" * 100_000
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        build(tmp_path / "s", deadly())
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not (tmp_path / "s").exists()
    assert list(tmp_path.iterdir()) != []
    assert build(tmp_path / "s").read(0, 15).tolist() == STREAM
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_full_disk_is_named(small_disk):
    disk = small_disk(64)
    with pytest.raises(OutputError, match="no space left"):
        build(disk / "s", ("x" * 100_000,))
    assert list(disk.iterdir()) == []


def damage_json(folder, **changes):
    content = json.loads((folder / JSON).read_text())
    (folder / JSON).write_text(json.dumps(content | changes))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / JSON).unlink(), "no store.json"),
        (lambda folder: (folder / JSON).write_text("{"), "not valid JSON"),
        (lambda folder: (folder / JSON).write_text("[]"), "version None is not known"),
        (lambda folder: damage_json(folder, format_version=2), "version 2 is not known"),
        (lambda folder: damage_json(folder, tokens="x"), "damaged: tokens: "),
        (lambda folder: damage_json(folder, extra=1), "damaged: extra: "),
        (lambda folder: (folder / IDS).write_bytes(b"123"), "has 3 bytes, not 30"),
        (lambda folder: (folder / IDS).unlink(), "cannot read .*tokens.bin"),
    ],
)
def test_a_damaged_store_is_refused(tmp_path, damage, words):
    build(tmp_path / "s")
    damage(tmp_path / "s")
    with pytest.raises(SourceError, match=words) as caught:
        TokenStore.open(tmp_path / "s")
    assert "\n" not in str(caught.value)


def test_other_bytes_are_found_by_their_hash(tmp_path):
    store = build(tmp_path / "s")
    content = bytearray((tmp_path / "s" / IDS).read_bytes())
    content[7] ^= 1
    (tmp_path / "s" / IDS).write_bytes(content)
    with pytest.raises(SourceError, match="SHA-256 is not that"):
        store.verify()
    with pytest.raises(SourceError, match="SHA-256 is not that"):  # and before it is used again
        build(tmp_path / "s")


def test_joined_streams_read_as_one(tmp_path):
    parts = [build(tmp_path / str(n), (text,)) for n, text in enumerate(("abc", "d", "efgh"))]
    joined = JoinedTokens(parts)
    whole = [token for part in parts for token in part.read(0, len(part)).tolist()]
    assert len(joined) == len(whole) == 14
    for begin in range(len(whole) + 1):
        for end in range(begin, len(whole) + 1):
            assert joined.read(begin, end - begin).tolist() == whole[begin:end]
