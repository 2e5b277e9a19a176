"""Mistakes that show in the options are refused before anything is fetched, read or computed."""

from __future__ import annotations

import pytest

from sparseinfer.checkpoint import Checkpoint

from .conftest import listing


@pytest.fixture
def nothing_is_opened(monkeypatch):
    def fail(*_args, **_kwargs):
        raise AssertionError("the model was opened")

    monkeypatch.setattr(Checkpoint, "open", fail)


@pytest.mark.parametrize("command", ["generate", "eval", "serve"])
@pytest.mark.parametrize("option", [("--threads", "0"), ("--weights", "int3")])
def test_threads_and_weights(fails, make_model, nothing_is_opened, command, option):
    prompt = ["hello"] if command == "generate" else []
    assert option[1] in fails(command, make_model(), *prompt, *option)


@pytest.mark.parametrize("every", ["0", "-1"])
def test_recall_is_sampled_every_so_many_steps(fails, nothing_is_opened, make_model, every):
    options = ("--sample-recall", every, "--predictor", "anything")
    assert f"--sample-recall {every} is not" in fails("serve", make_model(), *options)


def test_recall_is_sampled_of_a_predictor_on_the_cpu(fails, nothing_is_opened, make_model):
    sampled = ("serve", make_model(), "--sample-recall", "10")
    assert "add --predictor" in fails(*sampled)
    refused = fails(*sampled, "--predictor", "anything", "--device", "cuda")
    assert "use --device cpu" in refused
    assert "--help" in fails("serve", make_model(), "--sample-recall", "ten")


def test_threads_of_the_demo(fails, nothing_is_opened, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "threads" in fails("demo", "--threads", "0")


def test_more_threads_than_can_be_meant(fails, make_model):
    assert "1024" in fails("generate", make_model(), "hello", "--threads", str(10**30))


@pytest.mark.parametrize("command", ["eval", "demo"])
def test_report_that_cannot_be_written(fails, nothing_is_opened, make_model, tmp_path, command):
    (tmp_path / "file").write_text("kept")
    model = [make_model()] if command == "eval" else []
    assert "report" in fails(command, *model, "--report", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"


def test_calibration_text_that_is_not_there(fails, nothing_is_opened, make_model, tmp_path):
    message = fails(
        "convert", make_model(), "--act", "cats", "--sparsity", "0.5", "--text", "typo.txt"
    )
    assert "typo.txt" in message


def test_output_named_like_an_interrupted_write(fails, make_model, tmp_path):
    out = tmp_path / "model.partial"
    assert ".partial" in fails("convert", make_model(), "--act", "relu", "-o", out)
    assert listing(tmp_path) == []


def test_demo_output_of_another_model(fails, converted, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert "not the demo's checkpoint" in fails("demo", "-o", converted)


def test_torch_out_of_memory_is_one_line(fails, make_model, monkeypatch):
    import sparseinfer.packed.source as source

    def exhausted(*_args):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1")

    monkeypatch.setattr(source, "pack", exhausted)
    assert "out of memory" in fails("generate", make_model(), "hello")
