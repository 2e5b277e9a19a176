"""What needs a process of its own: imports, streams, signals, pipes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import listing


@pytest.fixture(scope="module")
def endless_model(make_model):
    """A model that goes on for 20,000 tokens."""
    return make_model(max_position_embeddings=20_000, eos_token_id=None, num_hidden_layers=1)


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from sparseinfer.cli.app import app\n"
        "for command in ('', 'convert', 'pack', 'generate', 'eval', 'serve', 'bench', 'inspect',\n"
        "                'demo', 'capture', 'train-predictor', 'finetune'):\n"
        "    app([*command.split(), '--help'], standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'numpy', 'safetensors', 'tokenizers', 'fastapi',\n"
        "         'huggingface_hub', 'pydantic_core._pydantic_core_'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == "[]\n"
    assert done.stdout.count("Usage:") == 12


def test_results_go_to_standard_output_and_logs_to_standard_error(process, make_model, tmp_path):
    (tmp_path / "text").write_text("word and " * 100)
    child = process(
        "convert", make_model(), "--act", "cats", "--sparsity", "0.5", "--text", "./text", "--json"
    )
    out, err = child.communicate(timeout=60)
    assert child.returncode == 0, err
    assert json.loads(out)["output"] == "tiny-llama-cats"
    assert len(err.splitlines()) == 2, err
    assert "calibrating on all of them" in err
    assert "GiB of memory" in err
    assert listing(tmp_path) == ["text", "tiny-llama-cats"]


def test_hub_model_without_a_network_says_in_one_line_what_to_do(process, tmp_path):
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf")}
    environment |= {"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0", "SPARSEINFER_OFFLINE": "0"}
    child = process("convert", "llama-7b", "--act", "relu2", env=environment)
    out, err = child.communicate(timeout=120)
    assert (child.returncode, out) == (2, "")
    assert err.count("\n") == 1, err
    assert err.startswith("error: ")
    assert "cannot be reached" in err
    assert "run once with a network, or download it on another machine" in err


def test_interrupt_while_generating(process, endless_model):
    child = process("generate", endless_model, "hello", "--raw", "--max-tokens", "19000")
    assert child.stdout.read(3)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=20)
    assert child.returncode == 130
    assert err == "interrupted\n"


def test_interrupt_while_converting(process, make_model, tmp_path):
    child = process(
        "convert", make_model(), "--act", "chess", "--sparsity", "0.5", "--text", "pydoc",
        "--calib-tokens", "100000",
    )  # fmt: skip
    assert "calibrating" in child.stderr.readline()
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=20)
    assert (child.returncode, out) == (130, "")
    assert err == "interrupted\n"
    assert listing(tmp_path) == []


def test_reader_that_leaves_while_text_is_generated_is_no_error(process, endless_model):
    child = process("generate", endless_model, "hello", "--raw", "--max-tokens", "19000")
    assert child.stdout.read(1)
    child.stdout.close()
    assert (child.wait(timeout=30), child.stderr.read()) == (0, "")


def test_reader_that_left_before_is_no_error(process):
    reading, writing = os.pipe()
    os.close(reading)
    child = process("--version", stdout=writing)
    os.close(writing)
    _, err = child.communicate(timeout=30)
    assert (child.returncode, err) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_to_a_full_disk(process):
    with open("/dev/full", "w") as full:  # noqa: PTH123
        child = process("--version", stdout=full)
        _, err = child.communicate(timeout=30)
    assert child.returncode == 2
    assert err == "error: no space left on the disk (standard output)\n"


def test_closed_standard_output(process):
    child = process("--version", preexec_fn=lambda: os.close(1), stdout=None)
    _, err = child.communicate(timeout=30)
    assert (child.returncode, err) == (0, "")
