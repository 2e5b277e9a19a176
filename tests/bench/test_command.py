"""`sparseinfer bench` on the command line."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import pytest

from sparseinfer.bench import shapes
from sparseinfer.bench.settings import BenchSettings

from .test_random_model import TINY
from .test_table import result


@pytest.fixture
def command(monkeypatch, capsys, cache):
    """command(*arguments) -> (status, stdout, stderr) of `sparseinfer bench` in this process."""
    from sparseinfer.cli import main

    monkeypatch.setitem(shapes.SHAPES, "tiny", TINY)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sparseinfer", "bench", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    level = logging.getLogger("sparseinfer").level
    yield run
    logging.getLogger("sparseinfer").setLevel(level)


@pytest.fixture
def measured(monkeypatch):
    """The settings that would have been measured; the result is a fixed one."""
    asked = []

    def bench(settings, *, progress, note):
        asked.append(settings)
        note("a note")
        return result()

    monkeypatch.setattr("sparseinfer.bench.run.bench", bench)
    return asked


def test_tables_then_json_as_the_last_line(command, measured, tmp_path):
    status, out, err = command("--report", tmp_path / "report.json")
    assert (status, err) == (0, "a note\n")
    *table, last = out.splitlines()
    assert any(line.startswith("side ") and "tokens/s" in line for line in table)
    content = json.loads(last)
    assert content["benchmark"] == "decode"
    assert json.loads((tmp_path / "report.json").read_text()) == content
    assert measured == [BenchSettings(model="smollm2-135m")]


def test_json_alone(command, measured):
    status, out, _ = command("--random-weights", "tiny", "--json")
    assert status == 0
    assert json.loads(out)["formats"][0]["weights"] == "int8"


def test_options_reach_the_settings(command, measured):
    command(
        "--random-weights", "tiny", "--layers", 2, "--weights", "int8,bf16", "--sparsity", "0,0.7",
        "--rule", "inputs,chess", "--baseline", "llama.cpp", "--pairs", 3, "--tokens", 5,
        "--context", 7, "--batch", "1,4", "--prefill", 9, "--threads", 1,
    )  # fmt: skip
    assert measured == [
        BenchSettings(
            random_weights="tiny", layers=2, weights=("int8", "bf16"), sparsity=(0.0, 0.7),
            rules=("inputs", "chess"), baselines=("llama.cpp",), pairs=3, steps=5, context=7,
            batch=(1, 4), prefill=9, threads=1,
        )
    ]  # fmt: skip


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from sparseinfer.cli.app import app\n"
        "app(['bench', '--help'], standalone_mode=False)\n"
        "print(sorted({'torch', 'transformers', 'numpy', 'llama_cpp'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--weights", "int3"], "int3"),
        (["--sparsity", "half"], "half"),
        (["--sparsity", "1.5"], "1.5"),
        (["--sparsity", ","], "--sparsity is empty"),
        (["--baseline", "ollama"], "ollama"),
        (["--rule", "layers"], "--rule 'layers'"),
        (["--kernel", "--rule", "inputs"], "--rule 'inputs' is not one of neurons, lowrank, sign"),
        (["--rule", "sketch", "--weights", "int4"], "does not go with int4"),
        (["--rule", "lowrank"], "--rule lowrank goes with --random-weights"),
        (["--batch", "two"], "--batch"),
        (["--batch", "1,99"], "--batch 99"),
        (["--threads", "0"], "threads 0"),
        (["--pairs", "0"], "--pairs"),
        (["--random-weights", "gpt5"], "gpt5"),
        (["model", "--random-weights", "tiny"], "not both"),
        (["--layers", "3"], "--layers"),
        (["./nowhere"], "nowhere"),
        (["--report", "/nowhere/report.json"], "/nowhere"),
        (["--report", "."], "folder"),
        (["--kernel", "--baseline", "dense"], "--baseline does not go with --kernel"),
        (["--kernel", "--batch", "1"], "--batch does not go with --kernel"),
        (["--kernel", "model"], "does not go with --kernel"),
        (["--kernel", "--sparsity", "own"], "own"),
        (["--kernel", "--random-weights", "gpt5"], "gpt5"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line_and_status_2(command, arguments, word):
    status, out, err = command(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert word in err
