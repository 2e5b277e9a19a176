"""Every kind of bad input: one clear line on standard error, status 2, nothing lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from .conftest import listing

MODEL_COMMANDS = ["inspect", "generate", "eval", "convert"]


@pytest.fixture
def refuse(fails, prose_file, tmp_path, monkeypatch):
    """refuse(command, model) runs a command that takes a model, in an empty folder."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def run(command, model, *more):
        options = {
            "inspect": [],
            "generate": ["hello", "--raw", "--max-tokens", "1"],
            "eval": ["--text", prose_file, "--tokens", "50", "--allow-same-text"],
            "convert": ["--act", "relu"],
        }[command]
        message = fails(command, model, *options, *more)
        assert listing(work) == []
        return message

    return run


@pytest.fixture
def model(make_model, tmp_path):
    """A copy of a tiny model to damage."""
    return shutil.copytree(make_model(shard_size="100KB"), tmp_path / "broken")


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(folder, change):
    path = sorted(folder.glob("model-*.safetensors"))[1]
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


# ---- models


@pytest.mark.parametrize("command", MODEL_COMMANDS)
def test_unknown_alias_is_answered_with_the_known_ones(refuse, command):
    assert "smollm2-135m" in refuse(command, "smollm3-9000b")


@pytest.mark.parametrize("command", MODEL_COMMANDS)
def test_offline_id_that_is_not_cached(refuse, command, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    message = refuse(command, "nobody/nothing-at-all")
    assert "nobody/nothing-at-all" in message
    assert "HF_HUB_OFFLINE" in message


def no_config(folder):
    (folder / "config.json").unlink()


def pickle_only(folder):
    for path in folder.glob("model*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80")


def truncated(folder):
    path = sorted(folder.glob("model-*.safetensors"))[1]
    path.write_bytes(path.read_bytes()[:-100])


def truncated_in_header(folder):
    path = sorted(folder.glob("model-*.safetensors"))[1]
    path.write_bytes(struct.pack("<Q", 5000) + b"{")


DAMAGES = {
    "config.json": no_config,
    "pickle": pickle_only,
    "auto_map": lambda folder: edit_config(folder, auto_map={"AutoModel": "x.Y"}),
    "truncated": truncated,
    "damaged": truncated_in_header,
    "missing tensor": lambda folder: edit_tensors(folder, lambda t: t.popitem()),
    "unexpected tensor": lambda folder: edit_tensors(folder, lambda t: t.update(x=torch.ones(1))),
    "supported: LlamaForCausalLM": lambda folder: edit_config(
        folder, model_type="gpt2", architectures=["GPT2LMHeadModel"]
    ),
    "format version 99": lambda folder: edit_config(folder, sparseinfer={"format_version": 99}),
    "not valid JSON": lambda folder: (folder / "config.json").write_text("{"),
    "vocab_size": lambda folder: edit_config(folder, vocab_size=0),
    "quantised": lambda folder: edit_config(folder, quantization_config={"quant_method": "gptq"}),
}


@pytest.mark.parametrize("words", DAMAGES)
@pytest.mark.parametrize("command", MODEL_COMMANDS)
def test_damaged_checkpoint(refuse, model, command, words):
    DAMAGES[words](model)
    message = refuse(command, model)
    assert words in message
    assert str(model) in message


@pytest.mark.parametrize("command", ["generate", "eval", "convert"])
def test_nan_weights(refuse, model, command):
    edit_tensors(model, lambda t: next(iter(t.values())).view(-1).__setitem__(0, torch.nan))
    assert "NaN" in refuse(command, model)


@pytest.mark.parametrize("command", ["inspect", "generate", "eval"])
def test_stale_thresholds(refuse, converted, tmp_path, command):
    folder = shutil.copytree(converted, tmp_path / "tuned")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"] *= 1.01
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert "other FFN weights" in refuse(command, folder)


@pytest.mark.parametrize("command", MODEL_COMMANDS)
def test_left_over_of_a_killed_conversion(refuse, converted, tmp_path, command):
    partial = shutil.copytree(converted, tmp_path / ".x.0a1b2c3d.partial")
    assert "interrupted" in refuse(command, partial)


@pytest.mark.parametrize("command", ["generate", "eval"])
def test_missing_tokenizer(refuse, model, command):
    for path in model.glob("tokenizer*"):
        path.unlink()
    assert "tokenizer" in refuse(command, model)


@pytest.mark.parametrize("command", MODEL_COMMANDS)
@pytest.mark.parametrize("name", ["", "./nowhere", "/etc/passwd", "x" * 5000, "a/b/c", "../.."])
def test_names_that_are_no_model(refuse, command, name):
    refuse(command, name)


# ---- convert


@pytest.mark.parametrize(
    "arguments",
    [
        ["--act", "cats", "--sparsity", "1"],
        ["--act", "cats", "--sparsity", "-0.1"],
        ["--act", "cats", "--sparsity", "nan"],
        ["--act", "cats", "--sparsity", "inf"],
        ["--act", "cats", "--sparsity", "half"],
        ["--act", "cats", "--sparsity", ""],
        ["--act", "cats", "--ppl-budget", "0%"],
        ["--act", "cats", "--ppl-budget", "-1%"],
        ["--act", "cats", "--ppl-budget", "1000%"],
        ["--act", "cats", "--ppl-budget", "some"],
        ["--act", "cats", "--ppl-budget", "1%", "--sparsity", "0.5"],
        ["--act", "cats", "--allocate", "best"],
        ["--act", "cats", "--sparsity", "0.5", "--allocate", "uniform"],
        ["--act", "sketch", "--sparsity", "0.5", "--sketch-bits", "5"],
        ["--act", "sketch", "--sparsity", "0.5", "--sketch-bits", "four"],
        ["--act", "chess", "--sparsity", "0.5", "--sketch-bits", "4"],
        ["--act", "relu", "--stage", "3"],
        ["--act", "teal", "--sparsity", "0.5", "--attention"],
        ["--act", "relu", "--sparsity", "0.5"],
        ["--act", "gelu"],
        ["--act", "relu", "--threshold", "0.1"],
        ["--act", "fatrelu", "--threshold", "nan"],
        ["--act", "fatrelu", "--threshold", "0.1", "--sparsity", "0.1"],
        ["--act", "cats", "--sparsity", "0.5", "--calib-tokens", "0"],
        ["--act", "cats", "--sparsity", "0.5", "--calib-tokens", "many"],
        ["--act", "cats", "--sparsity", "0.5", "--seed", "99999999999999999999"],
        ["--act", "relu", "--seed", "1"],
        ["--act", "fatrelu", "--threshold", "0.1", "--seed", "0"],
        ["--act", "relu", "--dtype", "int4"],
        ["--act", "chess", "--sparsity", "0.5", "--chess-score", "l7"],
        ["--act", "cats", "--sparsity", "0.5", "--text", "./nowhere.txt"],
        ["--act", "cats", "--sparsity", "0.5", "--text", "no-such-text"],
        [],
        ["--act"],
        ["--atc", "relu"],
        ["--act", "relu", "surplus"],
    ],
    ids=" ".join,
)
def test_bad_conversion_options(fails, make_model, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    fails("convert", make_model(), *arguments)
    assert listing(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "words"), [(b"", "empty"), (b"a\0b" * 999, "binary"), (b"short", "5 tokens")]
)
def test_useless_calibration_text(refuse, make_model, tmp_path, content, words):
    text = tmp_path / "text"
    text.write_bytes(content)
    message = refuse("convert", make_model(), "--act", "cats", "--sparsity", "0.5", "--text", text)
    assert words in message


def test_existing_output(fails, make_model, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    assert "--force" in fails("convert", make_model(), "--act", "relu", "-o", out)
    (out / "precious").touch()
    assert "--force only" in fails(
        "convert", make_model(), "--act", "relu", "-o", out, "--force"
    )  # fmt: skip
    assert listing(out) == ["precious"]


@pytest.mark.parametrize("place", ["file/out", "x" * 300, "/proc/nowhere/out"])
def test_output_that_cannot_be_written(fails, make_model, tmp_path, place):
    (tmp_path / "file").touch()
    message = fails("convert", make_model(), "--act", "relu", "-o", tmp_path / place)
    assert "cannot write" in message
    assert listing(tmp_path) == ["file"]


def test_full_disk_in_the_middle_of_a_conversion(fails, make_model, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfile", full)
    assert "no space left" in fails("convert", make_model(), "--act", "relu", "-o", tmp_path / "x")
    assert listing(tmp_path) == []


def test_a_folder_that_may_not_be_read(fails, monkeypatch, make_model):
    def forbidden(*_args, **_options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/models/secret")

    # For root nothing is forbidden, so it is only said to be.
    monkeypatch.setattr("sparseinfer.serve.loading.open_model", forbidden)
    message = fails("serve", make_model(), "--port", "0")
    assert "/models/secret: permission denied" in message


# ---- generate


def test_prompt_longer_than_the_context_says_both_counts(fails, make_model):
    message = fails("generate", make_model(), "x" * 500, "--raw")
    assert "500" in message
    assert "128" in message


@pytest.mark.parametrize("stdin", [b"\xff\xfe", b"text \xe2\x82"])
def test_standard_input_that_is_not_utf8(fails, make_model, stdin):
    assert "UTF-8" in fails("generate", make_model(), "-", stdin=stdin)


def test_prompt_whose_bytes_are_no_text(fails, make_model):
    assert "UTF-8" in fails("generate", make_model(), "a\udcff")


def test_empty_prompt(fails, make_model):
    assert "empty" in fails("generate", make_model(), "", "--raw")
    assert "empty" in fails("generate", make_model(), "-", "--raw")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--max-tokens", "0"],
        ["--max-tokens", "-5"],
        ["--max-tokens", "x"],
        ["--temperature", "-1"],
        ["--temperature", "nan"],
        ["--top-k", "-1"],
        ["--top-p", "0"],
        ["--top-p", "1.1"],
        ["--min-p", "-0.1"],
        ["--seed", "-1"],
        ["--weights", "int3"],
        ["--threads", "0"],
        ["--threads", "-1"],
        ["--json=yes"],
    ],
    ids=" ".join,
)
def test_bad_generation_options(fails, make_model, arguments):
    fails("generate", make_model(), "hello", "--raw", *arguments)


def test_chat_without_a_template(fails, model):
    (model / "chat_template.jinja").unlink()
    assert "chat template" in fails("generate", model, "hello", "--chat")


def test_chat_template_that_fails(fails, model):
    (model / "chat_template.jinja").write_text("{{ 1 // 0 }}")
    assert "chat template" in fails("generate", model, "hello", "--chat")


# ---- eval


@pytest.mark.parametrize(
    "arguments",
    [
        ["--by", "magic"],
        ["--tokens", "-1"],
        ["--context", "1"],
        ["--context", "129"],
        ["--stride", "0"],
        ["--stride", "129"],
        ["--parent", "./nowhere"],
        ["--weights", "fp8"],
        ["--ppl-p", "0%"],
        ["--ppl-p", "-1%"],
        ["--ppl-p", "1000%"],
        ["--ppl-p", "nan"],
        ["--ppl-p", "one"],
        ["--firing-tokens", "-1"],
        ["--limit", "3"],
        ["--tasks", ","],
        ["--tasks", "piqa", "--limit", "0"],
    ],
    ids=" ".join,
)
def test_bad_evaluation_options(refuse, converted, arguments):
    refuse("eval", converted, *arguments)


@pytest.mark.parametrize("content", [b"", b"a\0b"])
def test_useless_test_text(fails, make_model, tmp_path, content):
    (tmp_path / "text").write_bytes(content)
    assert "text" in fails("eval", make_model(), "--text", tmp_path / "text")


def test_report_that_cannot_be_written(fails, make_model, prose_file, tmp_path):
    (tmp_path / "file").touch()
    options = ["--text", prose_file, "--tokens", "20", "--report", tmp_path / "file" / "report"]
    assert "cannot write the report" in fails("eval", make_model(), *options)


# ---- usage


@pytest.mark.parametrize(
    "arguments",
    [
        ["inpect"],
        ["--vresion"],
        ["inspect", "--jsno"],
        ["inspect", "a", "b"],
        ["generate", "model"],
        ["generate"],
        ["serve", "--port", "http"],
        ["eval", "--tokens"],
    ],
    ids=" ".join,
)
def test_typos_are_answered_in_one_line_that_points_to_help(fails, arguments):
    assert "--help'" in fails(*arguments)


def test_typo_in_a_command_suggests_the_right_one(fails):
    assert "inspect" in fails("inpect")
