"""What commands print, where, and in which form."""

from __future__ import annotations

import io
import json
import shutil
import signal
import sys
from pathlib import Path

import jsonschema
import pytest

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.errors import CheckpointError

from .conftest import listing

SCHEMA = Path(__file__).parents[2] / "docs" / "report.schema.json"
COMMANDS = ["convert", "generate", "eval", "serve", "inspect", "demo"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(cli, command):
    result = cli(command, "--help")
    assert (result.code, result.err) == (0, "")
    assert "Usage: sparseinfer " + command in result.out
    assert "--help" in result.out


def test_help_lists_every_command(cli):
    result = cli("--help")
    assert result.code == 0
    assert all(command in result.out for command in COMMANDS)
    assert cli().out.strip() == result.out.strip()
    assert cli().code == 2


def test_version(cli):
    from sparseinfer import __version__

    assert cli("--version").out == f"sparseinfer {__version__}\n"


@pytest.mark.parametrize("error", [ImportError, CheckpointError])
def test_interrupt_that_a_library_turns_into_another_error(cli, make_model, monkeypatch, error):
    """Imports of numpy and transformers do so. The command still ends as interrupted."""
    import sparseinfer.sources

    def interrupted_import(_):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise error("cannot load module more than once per process") from None

    monkeypatch.setattr(sparseinfer.sources, "resolve_model", interrupted_import)
    handler = signal.getsignal(signal.SIGINT)
    result = cli("inspect", make_model())
    assert (result.code, result.out, result.err) == (130, "", "interrupted\n")
    assert signal.getsignal(signal.SIGINT) is handler


# ---- inspect


def test_inspect_dense(cli, make_model):
    model = make_model()
    content = cli("inspect", model, "--json").json
    assert content["architecture"] == "LlamaForCausalLM"
    assert content["path"] == str(model)
    assert content["record"] is None
    assert content["thresholds"] is None
    assert content["calibrated_sparsities"] is None
    assert content["ffn"] == {"phi": "silu", "psi": "id"}
    assert content["config"]["intermediate_size"] == 112
    assert content["parameters"] == sum(
        info.elements for info in Checkpoint.open(model).tensors.values()
    )
    # every weight once but for the embedding, of which one row is read
    assert content["bytes_per_token_dense"] == 4 * (content["parameters"] - 299 * 48)


def test_inspect_converted(cli, converted):
    content = cli("inspect", converted, "--json").json
    assert content["record"]["method"] == "chess"
    assert len(content["thresholds"]) == 3
    assert all(0 < t["min"] < t["median"] < t["max"] for t in content["thresholds"])
    assert content["calibrated_sparsities"]["neuron"] == pytest.approx(0.5, abs=1e-4)
    assert content["calibrated_sparsities"]["ffn_bytes"] == pytest.approx(1 / 3, abs=1e-4)
    assert content["bytes_per_token_calibrated"] < content["bytes_per_token_dense"]
    text = cli("inspect", converted).out
    for words in ("chess at neuron sparsity 0.5", "threshold, layer 2", "FFN byte", "calibrated"):
        assert words in text or words.replace("FFN byte", "FFN bytes") in text


def test_inspect_shows_thresholds_on_inputs(cli, make_sparse):
    folder = make_sparse(("q", "down"), mask="topk:30")
    content = cli("inspect", folder, "--json").json
    assert list(content["input_thresholds"]) == ["q", "down"]
    for layers in content["input_thresholds"].values():
        assert len(layers) == 3
        assert all(0 < t["min"] < t["median"] < t["max"] for t in layers)
    assert content["thresholds"] is None
    text = cli("inspect", folder).out
    for words in ("q inputs, layer 0", "down inputs, layer 2", "mask topk:30"):
        assert words in text


def test_long_values_are_not_wrapped_where_output_is_no_terminal(cli, make_model, tmp_path):
    deep = tmp_path / ("a" * 100) / ("b b" * 30)
    deep.mkdir(parents=True)
    model = shutil.copytree(make_model(), deep / "model :smile: [bold]x[/bold]")
    (line,) = [li for li in cli("inspect", model).out.splitlines() if li.startswith("path")]
    assert line.endswith(" " + str(model))
    out = deep / "converted"
    shown = cli("convert", model, "--act", "relu", "-o", out).out
    (line,) = [li for li in shown.splitlines() if li.startswith("written to")]
    assert line.endswith(" " + str(out))
    assert all(line == line.rstrip() for line in shown.splitlines())


def test_characters_that_the_output_cannot_show_become_escapes(
    cli, make_model, tmp_path, monkeypatch
):
    model = shutil.copytree(make_model(), tmp_path / "model-日本")
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "latin-1"))
    assert cli("inspect", model, "--json").code == 0
    assert json.loads(raw.getvalue())["model"] == "model-日本"  # they are JSON's own escapes


# ---- convert


def test_convert_prints_json(cli, make_model, prose_file, tmp_path):
    options = ["--sparsity", "0.5", "--text", prose_file, "--calib-tokens", "512"]
    result = cli(
        "convert", make_model(), "--act", "cats", *options, "-o", tmp_path / "out", "--json"
    )
    assert result.code == 0
    content = result.json
    assert content["output"] == str(tmp_path / "out")
    assert content["record"]["calibration"]["tokens"] == 512
    assert content["calibrated_sparsities"]["neuron"] == pytest.approx(0.5, abs=1e-3)
    assert content["notes"]


def test_convert_says_that_a_swap_ruins_the_model(cli, make_model, tmp_path):
    result = cli("convert", make_model(), "--act", "relu2", "-o", tmp_path / "out")
    assert result.code == 0
    assert "fine-tuned" in result.out


def test_convert_to_the_default_output(cli, make_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli("convert", make_model(), "--act", "drelu").code == 0
    assert listing(tmp_path) == ["tiny-llama-drelu"]


# ---- generate


def test_generate_prints_the_text_alone(cli, make_model):
    options = ["--raw", "--max-tokens", "8"]
    plain = cli("generate", make_model(), "hello", *options)
    content = cli("generate", make_model(), "hello", *options, "--json").json
    assert (plain.code, plain.err) == (0, "")
    assert plain.out == content["text"] + "\n"
    assert content["prompt_tokens"] == 5
    assert content["completion_tokens"] == len(content["token_ids"])
    assert content["finish_reason"] in ("stop", "length")


def test_generate_reads_standard_input(cli, make_model):
    options = ["--raw", "--max-tokens", "8", "--json"]
    given = cli("generate", make_model(), "héllo", *options).json
    piped = cli("generate", make_model(), "-", *options, stdin="héllo".encode()).json
    assert given["token_ids"] == piped["token_ids"]


def test_generate_statistics_go_to_standard_error(cli, converted):
    result = cli("generate", converted, "hello", "--raw", "--max-tokens", "8", "--stats")
    silent = cli("generate", converted, "hello", "--raw", "--max-tokens", "8")
    assert result.out == silent.out
    assert "tokens/s" in result.err
    for words in ("neuron", "FFN bytes", "model bytes"):
        assert words in result.err


def test_generate_uses_the_chat_template_unless_told_otherwise(cli, make_model):
    options = ["--max-tokens", "1", "--json"]
    counts = {
        flag: cli("generate", make_model(), "hi", *flag, *options).json["prompt_tokens"]
        for flag in ((), ("--chat",), ("--raw",))
    }
    assert counts[("--raw",)] == 2
    assert counts[()] == counts[("--chat",)] == len("<user>hi\n<assistant>")


def test_generate_is_repeatable_for_a_seed(cli, make_model):
    options = ["--raw", "--temperature", "1", "--max-tokens", "16", "--json"]
    texts = [
        cli("generate", make_model(), "hi", *options, "--seed", seed).json["token_ids"]
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


# ---- eval


@pytest.fixture
def other_text(tmp_path):
    """Prose that `converted` was not calibrated on."""
    from pydoc_data.topics import topics

    path = tmp_path / "other.txt"
    path.write_text("\n\n".join(topics[name] for name in sorted(topics)[-12:])[:4000], "utf-8")
    return path


def test_eval_prints_json_and_writes_the_report(cli, converted, other_text, tmp_path):
    folder = tmp_path / "new" / "report"
    options = ["--text", other_text, "--tokens", "200", "--report", folder]
    content = cli("eval", converted, *options, "--json").json
    assert content == json.loads((folder / "report.json").read_text("utf-8"))
    assert content["kind"] == "evaluation"
    assert content["texts"][0]["name"] == str(other_text)
    assert content["measurements"][0]["quality"]["dense"]["perplexity"] > 0
    assert len(content["layers"]) == 3
    assert "perplexity" in (folder / "report.md").read_text("utf-8")
    assert (folder / "report.html").read_text("utf-8").startswith("<!DOCTYPE html>")
    assert listing(folder) == ["report.html", "report.json", "report.md"]


def test_two_runs_of_eval_differ_in_timing_alone(cli, converted, other_text, tmp_path):
    options = ["--text", other_text, "--context", "64", "--ppl-p", "5%"]
    contents = []
    for name in ("first", "second"):
        assert cli("eval", converted, *options, "--report", tmp_path / name).code == 0
        contents.append(json.loads((tmp_path / name / "report.json").read_text("utf-8")))
        jsonschema.validate(contents[-1], json.loads(SCHEMA.read_text("utf-8")))
    timings = [content.pop("timing") for content in contents]
    assert contents[0] == contents[1]
    assert timings[0] != timings[1]
    assert contents[0]["firing"]["tokens"] > 0
    assert contents[0]["ppl_p"][0]["steps"]


def test_eval_names_where_the_report_is_and_what_to_know_of_it(
    cli, converted, prose_file, tmp_path
):
    options = ["--text", prose_file, "--tokens", "50", "--report", tmp_path / "report"]
    result = cli("eval", converted, *options, "--allow-same-text")
    assert (result.code, result.err) == (0, "")
    assert str(tmp_path / "report" / "report.html") in result.out
    assert "The model was calibrated on" in result.out


def test_eval_without_a_parent_says_so(cli, make_model, prose_file):
    result = cli("eval", make_model(), "--text", prose_file, "--tokens", "50")
    assert (result.code, result.err) == (0, "")
    assert "left out" in result.out
    assert "neuron sparsity" in result.out
    assert "dead" in result.out
    assert "CETT" in result.out


def test_eval_prints_the_interval_of_the_ratio(cli, converted, other_text):
    options = ["--text", other_text, "--tokens", "200", "--context", "50", "--firing-tokens", "0"]
    result = cli("eval", converted, *options)
    assert (result.code, result.err) == (0, "")
    assert "95% interval" in result.out
    assert "left out: not asked for" in result.out
