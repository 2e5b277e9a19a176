import socket
import subprocess
import sys
import time

import pytest

from sparseinfer.errors import CheckpointError, SourceError
from sparseinfer.sources import ALIASES, DEFAULT_MODEL, ResolvedModel, models, resolve_model
from sparseinfer.sources.wheels import WheelFile


@pytest.fixture
def fetched(monkeypatch, tmp_path):
    """Hub ids that were asked for."""
    asked = []

    def fetch(repo):
        asked.append(repo)
        return tmp_path / "snapshot"

    monkeypatch.setattr(models, "fetch_hub_model", fetch)
    return asked


def test_import_is_light():
    code = "import sys, sparseinfer.sources; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "transformers", "huggingface_hub", "gguf", "numpy"}
    assert not heavy & set(done.stdout.split())


def test_every_alias_has_a_source():
    assert DEFAULT_MODEL in ALIASES
    for source in ALIASES.values():
        assert isinstance(source, WheelFile) or models._HUB_ID.fullmatch(source)


def test_folder_is_itself(tmp_path, monkeypatch):
    folder = tmp_path / "mine"
    folder.mkdir()
    expected = ResolvedModel(folder, "mine", str(folder), "folder")
    assert resolve_model(str(folder)) == expected
    monkeypatch.chdir(tmp_path)
    assert resolve_model("mine") == resolve_model("./mine/") == expected
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_model("~/mine") == expected


@pytest.mark.parametrize("name", ["llama-7b", "org/name"])
def test_folder_wins_over_names(tmp_path, monkeypatch, fetched, name):
    (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve_model(name).path == tmp_path / name
    assert fetched == []


def test_alias_of_a_hub_model(fetched, tmp_path):
    resolved = resolve_model("llama-7b")
    assert fetched == ["huggyllama/llama-7b"]
    assert resolved == ResolvedModel(
        tmp_path / "snapshot", "llama-7b", "huggyllama/llama-7b", "hub"
    )


def test_hub_id(fetched, tmp_path):
    resolved = resolve_model("org/Name-1.5")
    assert resolved == ResolvedModel(tmp_path / "snapshot", "Name-1.5", "org/Name-1.5", "hub")


def test_gguf_file(write_gguf):
    path = write_gguf("Tiny.Model.GGUF").path
    resolved = resolve_model(str(path), dtype="fp32")
    assert (resolved.name, resolved.reference, resolved.origin) == ("Tiny.Model", str(path), "gguf")
    assert (resolved.path / "config.json").is_file()


def test_wheel_alias(write_gguf, monkeypatch):
    path = write_gguf().path
    monkeypatch.setattr(WheelFile, "fetch", lambda self: path)
    resolved = resolve_model(DEFAULT_MODEL)
    assert (resolved.name, resolved.reference) == (DEFAULT_MODEL, DEFAULT_MODEL)
    assert resolved.origin == "wheel"


@pytest.mark.parametrize(
    "reference", ["./none", "../none", "/none", "~/none", "none.gguf", "a/b/c", "./a\nb", "/\0"]
)
def test_missing_path_is_refused(reference, refuses, fetched):
    with refuses(SourceError, repr(reference), "does not exist"):
        resolve_model(reference)
    assert fetched == []


def test_other_file_is_refused(tmp_path, refuses, monkeypatch):
    (tmp_path / "weights.bin").touch()
    monkeypatch.chdir(tmp_path)
    for reference in ("weights.bin", str(tmp_path / "weights.bin")):
        with refuses(SourceError, repr(reference), "neither a folder nor a .gguf file"):
            resolve_model(reference)


@pytest.mark.parametrize("reference", ["", " ", "nope", "x" * 5000, "org/na me", "-o/x", "org/"])
def test_unknown_name_is_refused(reference, refuses, fetched):
    with refuses(SourceError, "unknown model", repr(reference), "org/name", *ALIASES):
        resolve_model(reference)
    assert fetched == []


def test_unfinished_folder_is_refused(tmp_path, refuses):
    folder = tmp_path / ".out.123.partial"
    folder.mkdir()
    with refuses(CheckpointError, str(folder), "interrupted"):
        resolve_model(str(folder))


def test_without_a_network_it_fails_fast(monkeypatch, refuses):
    def unreachable(*args, **options):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    started = time.monotonic()
    with refuses(SourceError, "huggyllama/llama-7b", "run once with a network"):
        resolve_model("llama-7b")
    assert time.monotonic() - started < 15


@pytest.mark.real_model
def test_default_model_answers():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    resolved = resolve_model(DEFAULT_MODEL)
    model = AutoModelForCausalLM.from_pretrained(resolved.path)
    tokenizer = AutoTokenizer.from_pretrained(resolved.path)
    assert model.dtype == torch.bfloat16
    assert model.config.tie_word_embeddings
    assert (model.config.bos_token_id, model.config.eos_token_id) == (1, 2)
    assert "<|im_start|>" in tokenizer.chat_template
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=6, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0])
    # Digits one by one, also after several spaces, as this model's own tokenizer has it.
    assert tokenizer.tokenize("a  2024") == ["a", "ĠĠ", "2", "0", "2", "4"]
