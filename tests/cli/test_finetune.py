"""`sparseinfer finetune`: what it prints and leaves behind, and every mistake that it refuses."""

from __future__ import annotations

import errno
import gc
import json
import os
import shutil
from pathlib import Path

import jsonschema
import pytest
import torch

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.finetune import loop, training
from sparseinfer.finetune.loop import Loop
from sparseinfer.finetune.objective import Loss
from sparseinfer.finetune.schedule import PROSPARSE

from .conftest import listing

SCHEMA = Path(__file__).parents[2] / "docs" / "report.schema.json"
SHAPE = ["--context", "32", "--batch", "8", "--micro-batch", "4", "--precision", "fp32", "--cpu"]
BASE = [*SHAPE, "--no-warm-start", "--no-report"]
FOUR_STEPS = ["--tokens", "1024"]
TWO_STEPS = ["--tokens", "512"]
STATE = Path("out.training") / "tuned" / "state" / "state.json"


@pytest.fixture
def work(tmp_path, monkeypatch):
    """An empty folder to work in."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def command(make_model, prose_file, work):
    """command(*options, model=, texts=, base=) -> arguments, for the output `out` in `work`."""

    def make(*options, model=None, texts=None, base=BASE):
        named = [prose_file] if texts is None else texts
        text = [word for one in named for word in ("--text", one)]
        return ["finetune", model or make_model(), *text, *base, "-o", "out", *options]

    return make


@pytest.fixture
def refuse(fails, command, work):
    """refuse(*options, model=, texts=, base=) -> the line; nothing is left behind."""

    def run(*options, **changes):
        message = fails(*command(*options, **changes))
        assert listing(work) == []
        return message

    return run


@pytest.fixture
def other_text(tmp_path):
    """Prose that nothing is trained on."""
    from pydoc_data.topics import topics

    path = tmp_path / "other.txt"
    path.write_text("\n\n".join(topics[name] for name in sorted(topics)[-12:])[:1500], "utf-8")
    return path


def saved_step() -> int:
    return json.loads(STATE.read_text())["step"]


# ---- what it does


def test_results_as_json_and_a_report(cli, command, work, other_text):
    measured = ["--test-text", other_text, "--control", "--json"]
    done = cli(*command(*TWO_STEPS, *measured, base=[*SHAPE, "--no-warm-start"]))
    assert (done.code, done.err) == (0, "")
    tuned, dense, plain = done.json["results"]
    assert list(tuned) == [
        "run", "output", "tokens", "loss", "sparsity_in_training", "text", "perplexity",
        "perplexity_over_dense", "perplexity_over_dense_control", "neuron_sparsity",
        "ffn_byte_sparsity", "model_byte_sparsity",
    ]  # fmt: skip
    assert list(dense) == [key for key in tuned if key != "perplexity_over_dense_control"]
    assert [one["output"] for one in (tuned, dense, plain)] == [
        "out",
        "out-dense",
        "out-plain-relu",
    ]
    assert (tuned["tokens"], tuned["text"]) == (512, str(other_text))
    assert 0 == dense["neuron_sparsity"] < tuned["model_byte_sparsity"] < tuned["neuron_sparsity"]
    assert listing(work) == ["out", "out-dense", "out-plain-relu", "out-report"]
    assert listing(work / "out-report") == ["report.html", "report.json", "report.md"]
    report = json.loads((work / "out-report" / "report.json").read_text("utf-8"))
    jsonschema.validate(report, json.loads(SCHEMA.read_text("utf-8")))
    assert report["kind"] == "finetuning"
    assert [run["name"] for run in report["runs"]] == ["out", "out-dense", "out-plain-relu"]


def test_minutes_stop_a_run_and_the_same_command_goes_on(cli, command, work, other_text):
    base = [*SHAPE, "--no-warm-start", "--test-text", other_text, "--report", "seen"]
    arguments = command(*TWO_STEPS, "--minutes", "1e-9", base=base)
    stopped = cli(*arguments)
    assert (stopped.code, stopped.out) == (4, "")
    assert stopped.err == "not finished: the same command goes on (out.training)\n"
    assert listing(work) == ["out.training"]
    finished = cli(*arguments)
    assert finished.code == 0
    assert listing(work) == ["out", "seen"]
    assert "report: seen/report.html" in finished.out
    for words in ("tuned: out", "perplexity_over_dense", "neuron_sparsity", "tokens"):
        assert words in finished.out


def test_minutes_stop_a_warm_start_too(cli, command, work):
    options = ["--warm-start-only", "--warm-start-tokens", "1024", "--minutes", "1e-9"]
    arguments = command(*options, base=[*SHAPE, "--no-report"])
    assert cli(*arguments).code == 4
    assert listing(work / "out.training" / "warm-start") == [
        "layer-000.safetensors",
        "settings.json",
    ]
    assert [cli(*arguments).code for _ in range(2)] == [4, 0]  # layers 1 and 2
    assert listing(work) == ["out"]


def test_without_a_report_nothing_is_measured(cli, command, work):
    (found,) = cli(*command(*TWO_STEPS, "--json")).json["results"]
    assert list(found) == ["run", "output", "tokens", "loss", "sparsity_in_training"]
    assert listing(work) == ["out"]


def test_an_output_is_replaced_when_told_so(cli, fails, command, work):
    assert cli(*command(*TWO_STEPS)).code == 0
    again = command(*TWO_STEPS, "--act", "relu2")
    assert "--force" in fails(*again)
    assert Checkpoint.open(work / "out").raw["hidden_act"] == "relu"
    assert cli(*again, "--force").code == 0
    assert Checkpoint.open(work / "out").raw["hidden_act"] == "relu2"
    assert listing(work) == ["out"]


# ---- options, refused before a model is opened

BELONGS = {
    "--schedule": (PROSPARSE, "prosparse"),
    "--target-sparsity": ("0.8", "prosparse"),
    "--stochastic-p": ("0.5", "stochastic"),
    "--relu-fraction": ("0.1", "stochastic or clipped"),
    "--soft-threshold": ("0.2", "clipped"),
    "--clip": ("1", "clipped"),
    "--top-k": ("30", "topk"),
}
OBJECTIVES = ("prosparse", "relu", "stochastic", "clipped", "topk")


@pytest.fixture
def refuse_early(refuse, monkeypatch):
    """As `refuse`; no model is looked at."""

    def fail(*_args, **_kwargs):
        raise AssertionError("the model was opened")

    monkeypatch.setattr(Checkpoint, "open", fail)
    return refuse


@pytest.mark.parametrize(
    ("option", "objective"),
    [(flag, one) for flag, (_, its) in BELONGS.items() for one in OBJECTIVES if one not in its],
)
def test_an_option_of_another_objective(refuse_early, option, objective):
    value, its = BELONGS[option]
    message = refuse_early("--objective", objective, option, value)
    assert f"{option} belongs to objective {its}, not to {objective}" in message


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--act gelu", "--act 'gelu' is not one of relu, relu2, drelu, fatrelu"),
        ("--objective lasso", "--objective 'lasso' is not one of prosparse"),
        ("--precision fp16", "--precision 'fp16' is not one of fp32, bf16"),
        ("--objective topk", "needs --top-k"),
        ("--objective topk --top-k 0", "--top-k 0"),
        ("--objective stochastic --act drelu", "defined on relu"),
        ("--objective clipped --act fatrelu", "take --act relu"),
        ("--objective topk --top-k 3 --act fatrelu", "take --act relu"),
        ("--target-sparsity 1", "--target-sparsity 1.0 is outside"),
        ("--target-sparsity nan", "--target-sparsity nan is outside"),
        (f"--target-sparsity 0.8 --schedule {PROSPARSE}", "either --schedule or --target"),
        ("--distill 2", "--distill 2.0 is outside"),
        ("--distill-ffn -1", "--distill-ffn -1.0"),
        ("--ppl-budget 1%", "--ppl-budget belongs to --act fatrelu"),
        ("--act fatrelu --ppl-budget 0%", "--ppl-budget 0 is outside"),
        ("--act fatrelu --ppl-budget 200%", "--ppl-budget 2 is outside"),
        ("--act fatrelu --ppl-budget some", "write 1% or 0.01"),
        ("--no-warm-start --warm-start-only", "--no-warm-start goes with neither"),
        ("--no-warm-start --warm-start-tokens 2000", "--no-warm-start goes with neither"),
        ("--warm-start --warm-start-tokens 0", "--no-warm-start"),
        ("--warm-start --warm-start-tokens -1", "too few"),
        ("--warm-start --warm-start-tokens 1000", "needs 1024 or more"),
        ("--warm-start --warm-start-only --control", "--warm-start-only trains none"),
        ("--warm-start --warm-start-only --act fatrelu", "take --act relu"),
        ("--warm-start --warm-start-only --distill 0.5", "--distill belongs to training"),
        ("--warm-start --warm-start-only --target-sparsity 0.8", "--target-sparsity belongs"),
        ("--warm-start --warm-start-only --objective relu", "--objective belongs to training"),
        ("--warm-start --warm-start-only --tokens 99", "--warm-start-tokens"),
        ("--tokens 0", "--tokens 0"),
        ("--tokens -5", "--tokens -5"),
        ("--context 1", "--context 1"),
        ("--batch 0", "--batch 0"),
        ("--batch 6", "--batch 6 is not a multiple of --micro-batch 4"),
        ("--micro-batch 16", "--batch 8 is not a multiple of --micro-batch 16"),
        ("--lr 0", "--lr 0.0"),
        ("--lr inf", "--lr inf"),
        ("--final-lr 2", "--final-lr 2.0"),
        ("--warm-up 1", "--warm-up 1.0"),
        ("--weight-decay -1", "--weight-decay"),
        ("--clip-norm -1", "--clip-norm"),
        ("--save-every 0", "--save-every 0"),
        ("--minutes 0", "--minutes 0.0"),
        ("--minutes nan", "--minutes nan"),
        ("--seed -1", "--seed -1"),
        ("--seed 99999999999999999999", "does not fit"),
        ("--self-generate 0", "--self-generate 0"),
        ("--report folder", "either --report or --no-report"),
        ("--test-text pydoc", "--no-report measures nothing"),
        ("--output .", "does not name a folder"),
        ("--output /", "does not name a folder"),
        ("--frobnicate", "--help"),
        ("--tokens many", "--help"),
    ],
)
def test_bad_options(refuse_early, options, words):
    assert words in refuse_early(*options.split())


def test_no_text_to_train_on(refuse_early):
    message = refuse_early(texts=[])
    assert "no text to train on" in message
    assert "--self-generate" in message


def test_too_little_to_generate(refuse_early):
    message = refuse_early("--self-generate", "255", texts=[])
    assert "one batch needs 256 tokens" in message


@pytest.mark.parametrize("text", ["no-such-text", "./nowhere.txt"])
def test_a_test_text_that_is_not_there(refuse_early, text):
    assert Path(text).name in refuse_early("--test-text", text, base=[*SHAPE, "--no-warm-start"])


def test_a_test_text_that_is_trained_on(refuse_early, prose_file):
    message = refuse_early("--test-text", prose_file, base=[*SHAPE, "--no-warm-start"])
    assert "--test-text" in message
    assert "would not be held out" in message


def test_a_report_that_cannot_be_written(refuse_early, tmp_path):
    (tmp_path / "file").write_text("kept")
    for place in ("file", "file/report"):
        options = ["--report", tmp_path / place, "--test-text", "pydoc"]
        message = refuse_early(*options, base=[*SHAPE, "--no-warm-start"])
        assert "cannot write the report" in message
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("unit: [", "not YAML"),
        ("", "has no `unit` and `stages`"),
        ("unit: fraction\nstages: [{lambda: 1, until: 1, rate: 2}]", "rate is not known here"),
        ("unit: fraction\nstages: [{lambda: -1, until: 1}]", "stage 1, lambda"),
        (
            "unit: steps\nstages: [{lambda: 0, until: 9}, {lambda: 1, until: 9}]",
            "stage 2 ends at 9, not after stage 1",
        ),
        (None, "cannot be read"),
    ],
)
def test_bad_schedules(refuse_early, tmp_path, content, words):
    path = tmp_path / "stages.yaml"
    if content is not None:
        path.write_text(content)
    message = refuse_early("--schedule", path)
    assert words in message
    assert str(path) in message


# ---- models and texts


def test_stages_that_end_after_the_run(fails, cli, refuse, command, work, tmp_path):
    path = tmp_path / "stages.yaml"
    path.write_text("unit: steps\nstages: [{lambda: 0.1, until: 500}]")
    words = "the stages of lambda end at step 500, but the run has"
    assert f"{words} 4 steps" in refuse("--schedule", path, *FOUR_STEPS)
    # How many steps there are may show only when the text was read. It is no waste: the tokens
    # stay, and nothing keeps other stages from being tried there.
    assert words in fails(*command("--schedule", path, "--batch", "64"))
    assert listing(work / "out.training") == ["settings.json", "text"]
    path.write_text("unit: steps\nstages: [{lambda: 0.1, until: 2}]")
    assert cli(*command("--schedule", path, "--batch", "64")).code == 0


def test_more_than_the_model_has(refuse):
    assert "over the model's context of 128" in refuse("--context", "129")
    assert "outside 1 to 112" in refuse("--objective", "topk", "--top-k", "113")


@pytest.mark.parametrize("act", ["relu2", "drelu", "relu"])
def test_a_model_with_another_relu(refuse, make_model, act):
    model = make_model(hidden_act="relu" if act != "relu" else "relu2")
    message = refuse("--act", act, model=model)
    assert "ReLU-fied already" in message
    assert f"--act {act}" in message


def test_a_converted_model_with_another_relu(refuse, make_model, tmp_path):
    from sparseinfer.convert import convert

    swapped = convert(str(make_model()), "relu2", out=tmp_path / "swapped").out
    assert "ReLU-fied already, with relu2" in refuse("--act", "relu", model=swapped)


def test_a_warm_start_of_a_model_that_has_a_relu(refuse, make_model):
    message = refuse("--warm-start", model=make_model(hidden_act="relu"))
    assert "begins at SiLU" in message


def test_a_packed_model(refuse, make_model, tmp_path):
    from sparseinfer.packed.pipeline import pack_model

    packed = pack_model(str(make_model()), "int8", out=tmp_path / "packed").out
    assert "is packed; fine-tune the checkpoint" in refuse(model=packed)


def test_masked_models(refuse, converted, make_model, prose_file, tmp_path):
    from sparseinfer.convert import convert

    cats = convert(
        str(make_model()), "cats", sparsity=0.5, text=str(prose_file), calibration_tokens=512,
        out=tmp_path / "cats",
    ).out  # fmt: skip
    for method, model in (("cats", cats), ("chess", converted)):
        message = refuse(model=model)
        assert f"was converted by {method}; fine-tune its dense parent {make_model()}" in message


def test_a_model_with_nan(refuse, make_model, tmp_path):
    from safetensors.torch import load_file, save_file

    model = shutil.copytree(make_model(), tmp_path / "broken")
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"][0] = torch.nan
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    assert "NaN" in refuse(model=model)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"too few words", "needs 256: give more text"),
        (b" \n", "empty"),
        (b"a\0b", "binary"),
        (b"\xff\xfe" * 200, "not UTF-8"),
        (None, "does not exist"),
    ],
)
def test_useless_text(refuse, tmp_path, content, words):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    assert words in refuse(texts=[path])


def test_a_text_that_is_refused_is_found_before_the_model_writes_any(refuse, tmp_path, monkeypatch):
    from sparseinfer.finetune import text

    def fail(*_args, **_kwargs):
        raise AssertionError("the model writes")

    monkeypatch.setattr(text, "self_generate", fail)
    assert "does not exist" in refuse("--self-generate", "999", texts=[tmp_path / "nowhere.txt"])


@pytest.mark.parametrize(
    ("options", "taken"), [((), "out"), (("--control",), "out-dense"), (("--force",), "out")]
)
def test_an_output_that_is_there(fails, command, work, options, taken):
    (work / taken).mkdir()
    (work / taken / "precious").touch()
    message = fails(*command(*options))
    assert "--force only replaces" in message if options == ("--force",) else "--force" in message
    assert listing(work) == [taken]
    assert listing(work / taken) == ["precious"]


# ---- what happens on the way


def test_other_settings_than_the_run_began_with(cli, fails, command, work):
    arguments = command(*TWO_STEPS)
    assert cli(*arguments, "--minutes", "1e-9").code == 4
    state = {path: path.read_bytes() for path in STATE.parent.iterdir()}
    message = fails(*arguments, "--lr", "2e-3", "--distill", "0.5", "--seed", "3")
    for words in ("objective.distill 0.0, not 0.5", "run.rate 0.0001, not 0.002"):
        assert words in message
    assert "run.seed 0, not 3): ask for the same" in message
    assert state == {path: path.read_bytes() for path in STATE.parent.iterdir()}
    assert listing(work) == ["out.training"]
    assert cli(*arguments).code == 0


def exhausted_at(number, error):
    """A pass that fails like this when it is called for the given time, from 1."""
    real, calls = Loop._pass, []

    def run(self, *args):
        calls.append(args)
        if len(calls) == number:
            raise error
        return real(self, *args)

    return run


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "python"],
)
def test_out_of_memory_says_what_to_change_and_takes_it(
    cli, fails, command, work, monkeypatch, error
):
    arguments = command(*FOUR_STEPS, "--save-every", "1", "--json")
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_pass", exhausted_at(5, error))
        message = fails(*arguments)
    assert "out of memory in step 3" in message
    assert listing(work) == ["out.training"]
    assert saved_step() == 2
    for knob in ("--micro-batch", "--gradient-checkpointing"):
        assert knob in message
    done = cli(*arguments, "--micro-batch", "2", "--gradient-checkpointing")
    assert (done.code, done.json["results"][0]["tokens"]) == (0, 1024)


def test_out_of_memory_before_the_first_step(fails, command, work, monkeypatch):
    def exhausted(*_args, **_kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(training, "load_student", exhausted)
    message = fails(*command(*TWO_STEPS))
    assert "out of memory while loading the model" in message
    assert "FSDP" in message
    assert listing(work) == ["out.training"]


def test_loss_that_is_not_finite_keeps_the_last_good_state(cli, fails, command, work):
    wild = ["--act", "relu2", "--objective", "relu", "--lr", "1e30", "--clip-norm", "0"]
    arguments = command(*FOUR_STEPS, *wild, "--warm-up", "0", "--save-every", "1", "--json")
    message = fails(*arguments)
    assert "of step 2 are not finite: training stops" in message
    assert f"the state after step 1 is kept in {STATE.parent}" in message
    assert listing(work) == ["out.training"]
    assert saved_step() == 1
    assert fails(*arguments) == message
    # What the message advises is another run: this one has a state of its own settings.
    assert "run.rate 1e+30, not 1e-06" in fails(*arguments, "--lr", "1e-6")
    assert cli(*arguments, "--lr", "1e-6", "-o", "other").code == 0


def test_loss_that_is_not_finite_in_the_first_step(cli, fails, command, work, monkeypatch):
    real = loop.loss_of

    def broken(*args):
        found = real(*args)
        return Loss(found.total * torch.nan, found.parts)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "loss_of", broken)
        message = fails(*command(*TWO_STEPS, "--json"))
    assert "loss of step 1 are not finite" in message
    assert "no state was written yet" in message
    assert "--lr" in message
    assert listing(work) == ["out.training"]
    # Nothing was trained: a lower rate is no other run yet.
    assert cli(*command(*TWO_STEPS, "--lr", "1e-5")).code == 0
    assert listing(work) == ["out"]


def test_a_full_disk_while_a_state_is_written(fails, command, small_disk):
    disk = small_disk(300)
    message = fails(*command(*TWO_STEPS, "--json", "-o", disk / "out"))
    assert "no space left" in message
    assert listing(disk) == ["out.training"]
    assert listing(disk / "out.training" / "tuned") == ["metrics.jsonl"]
    gc.collect()  # the mapped text, or the disk is in use


def test_a_full_disk_while_the_result_is_written(cli, fails, command, work, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fail(*_):
        raise AssertionError("it trains again")

    arguments = command(*TWO_STEPS, "--json")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", full)
        assert "no space left" in fails(*arguments)
    assert listing(work) == ["out.training"]
    assert saved_step() == 2
    monkeypatch.setattr(Loop, "step", fail)
    assert cli(*arguments).json["results"][0]["tokens"] == 512
    assert listing(work) == ["out"]


def test_a_process_that_trained_in_another_precision(refuse, cli, command, work):
    assert cli(*command(*TWO_STEPS)).code == 0
    shutil.rmtree(work / "out")
    assert "--precision bf16 --cpu cannot be had here" in refuse("--precision", "bf16")
