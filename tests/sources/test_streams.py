"""Texts whose documents come one at a time."""

import json
import sys
import tracemalloc
from types import SimpleNamespace

import pytest

from sparseinfer.errors import ConfigError, SourceError
from sparseinfer.sources import load_text, stream_text, stream_texts
from sparseinfer.sources import text_files as text_files_module
from sparseinfer.sources.text_files import text_file_documents
from sparseinfer.sources.texts import LONGEST_PIECE


def write(path, text):
    path.write_bytes(text.encode())
    return str(path)


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 1 << 20])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_documents_do_not_depend_on_how_a_file_is_read(tmp_path, monkeypatch, name, piece):
    records = [{"text": "café 日本 😀\n\u2028x"}, {"text": " "}, {"text": "two", "id": 1}]
    lines = "\n".join(json.dumps(one, ensure_ascii=False) for one in records)
    path = write(tmp_path / name, "\ufeff" + lines)
    monkeypatch.setattr(text_files_module, "_PIECE", piece)
    expected = ("café 日本 😀\n\u2028x", "two") if name.endswith("l") else (lines,)
    assert load_text(path).documents == expected
    assert tuple(stream_text(path)) == expected


@pytest.mark.parametrize("piece", [1, 4, 1 << 20])
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"caf\xc3\xa9 \xe9!", "bad byte 0xe9 at offset 6"),
        (b"long enough \xe2\x82", "bad byte 0xe2 at offset 12"),
        (b"caf\xc3\xa9 and\0", "NUL byte at offset 9"),
    ],
)
def test_offsets_count_from_the_start_of_the_file(
    tmp_path, monkeypatch, refuses, piece, data, words
):
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    monkeypatch.setattr(text_files_module, "_PIECE", piece)
    with refuses(SourceError, str(path), words):
        list(stream_text(str(path)))


def test_a_long_text_is_cut_at_blank_lines(tmp_path):
    paragraphs = [f"{number} " + "word " * 30 + "end." for number in range(50)]
    text = "\n\n".join(paragraphs)
    path = tmp_path / "a.txt"
    write(path, text)
    documents = list(text_file_documents(path, longest=1000))
    assert "".join(documents) == text
    assert all(500 < len(document) <= 1000 for document in documents[:-1])
    assert all(document.endswith("end.\n\n") for document in documents[:-1])


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("line of text\n" * 400, "\n"),
        ("word " * 1000, " "),
        ("日本語" * 2000, ""),
        ("a\r\n\r\n" + "bb cc\r\n\r\n" * 500, "\r\n\r\n"),
    ],
)
def test_without_blank_lines_it_is_cut_where_it_can_be(tmp_path, text, ends):
    path = tmp_path / "a.txt"
    write(path, text)
    documents = list(text_file_documents(path, longest=100))
    assert "".join(documents) == text
    assert all(50 < len(document) <= 100 for document in documents[:-1])
    assert all(document.endswith(ends) for document in documents)


def test_memory_does_not_grow_with_the_file(tmp_path):
    path = tmp_path / "huge.txt"
    with path.open("wb") as file:
        for _ in range(24):
            file.write(b"x" * (1 << 20))
    tracemalloc.start()
    try:
        count = sum(len(document) for document in stream_text(str(path)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 24 << 20
    assert peak < 8 << 20


def test_pieces_of_a_file_have_a_bound(tmp_path):
    path = write(tmp_path / "a.txt", "some words " * 20_000)
    documents = list(stream_text(path))
    assert len(documents) > 1
    assert max(map(len, documents)) <= LONGEST_PIECE
    assert load_text(path).joined == "".join(documents)


def test_several_texts_follow_each_other(tmp_path):
    one = write(tmp_path / "one.txt", "first")
    two = write(tmp_path / "two.jsonl", '{"text": "second"}\n{"text": "third"}\n')
    assert list(stream_texts([one, two, one])) == ["first", "second", "third", "first"]
    assert list(stream_texts(["pydoc"])) == list(load_text("pydoc").documents)


def test_no_text_is_refused(refuses):
    with refuses(ConfigError, "no text is named"):
        stream_texts([])


@pytest.mark.parametrize("second", ["nope", "./missing.txt", ".", "hf:a/b/c/d"])
def test_a_text_that_is_not_there_is_refused_before_the_first_is_read(tmp_path, refuses, second):
    path = write(tmp_path / "a.txt", "fine")
    with pytest.raises(SourceError) as alone:
        load_text(second)
    with refuses(SourceError, str(alone.value)):
        stream_texts([path, second])


@pytest.mark.parametrize(
    ("line", "words"),
    [("{oops", "line 3: not valid JSON"), ('{"txt": 1}', "line 3: no field 'text'")],
)
def test_a_bad_line_is_refused_where_it_comes(tmp_path, refuses, line, words):
    path = write(tmp_path / "a.jsonl", '{"text": "fine"}\n\n' + line + "\n")
    documents = stream_text(path)
    assert next(documents) == "fine"
    with refuses(SourceError, path, words):
        next(documents)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
@pytest.mark.parametrize("text", ["", " \n\t\n"])
def test_an_empty_file_is_refused(tmp_path, refuses, name, text):
    path = write(tmp_path / name, text)
    with refuses(SourceError, path, "is empty"):
        list(stream_text(path))


def test_a_disk_that_fails_is_named(tmp_path, refuses, monkeypatch):
    path = write(tmp_path / "a.txt", "fine")
    documents = stream_text(path)
    (tmp_path / "a.txt").unlink()
    with refuses(SourceError, f"cannot read text file {path!r}"):
        next(documents)


@pytest.fixture
def hub(monkeypatch):
    """Stands in for the datasets library; gives its calls."""
    calls = []

    def rows(repo):
        yield {"text": "a"}
        yield {"text": "  "}
        if repo == "org/broken":
            raise ConnectionError("the line\nbroke")
        yield {"text": "b"} if repo == "org/name" else {"body": "b"}

    def load_dataset(*args, **options):
        calls.append(options)
        if args[0] == "org/missing":
            raise FileNotFoundError("no such data set")
        return rows(args[0])

    module = SimpleNamespace(load_dataset=load_dataset, DownloadConfig=lambda **options: options)
    monkeypatch.setitem(sys.modules, "datasets", module)
    return calls


def test_a_hub_data_set_is_streamed_where_there_is_a_network(hub, monkeypatch):
    assert list(stream_text("hf:org/name:test")) == ["a", "b"]
    assert load_text("hf:org/name").documents == ("a", "b")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert list(stream_text("hf:org/name")) == ["a", "b"]
    cached = {"split": "train", "download_config": {"local_files_only": True}}
    assert hub == [{"split": "test", "streaming": True}, {"split": "train"}, cached]


def test_hub_errors_come_when_they_are_met(hub, refuses):
    with refuses(SourceError, "cannot fetch text 'hf:org/missing'", "no such data set"):
        stream_text("hf:org/missing")
    for name, words in (("broken", "the line broke"), ("other", "no column 'text'")):
        documents = stream_text(f"hf:org/{name}")
        assert next(documents) == "a"
        with refuses(SourceError, f"hf:org/{name}", words):
            next(documents)
