"""`finetune` from a model folder to checkpoints, on a tiny model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import sparseinfer
from sparseinfer.checkpoint import Checkpoint
from sparseinfer.errors import ConfigError, OutputError, SourceError, UnsupportedError
from sparseinfer.eval import ModelProbe, evaluate
from sparseinfer.eval.finetuning import finetuning_report
from sparseinfer.finetune import Budget, ObjectiveSettings, Request, RunSettings, finetune
from sparseinfer.finetune.metrics import read_metrics
from sparseinfer.finetune.settings import check_objective
from sparseinfer.finetune.student import load_student
from sparseinfer.finetune.text import tokens_to_read

RUN = RunSettings(tokens=1024, context=32, batch=8, micro_batch=4, rate=1e-3, precision="fp32")
"""Four steps."""


@pytest.fixture
def tune(make_model, prose_file, tmp_path):
    """tune(objective, name="out", **request) -> Finetuning of the tiny model."""

    def go(objective=None, name="out", *, model=None, run=RUN, budget=Budget(), **changes):
        request = {"texts": (str(prose_file),), "warm_start": 0} | changes
        return finetune(
            str(model or make_model()),
            Request(objective or ObjectiveSettings(act="relu"), run, **request),
            out=tmp_path / name,
            budget=budget,
            cpu=True,
            open_probe=ModelProbe,
        )

    return go


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in Checkpoint.open(folder).read()}


@pytest.mark.parametrize(
    ("objective", "act", "mask"),
    [
        (ObjectiveSettings(act="relu", distill=0.5, distill_ffn=0.1), "relu", "gate"),
        (ObjectiveSettings(act="relu2", target_sparsity=0.8), "relu2", "gate"),
        (ObjectiveSettings(act="drelu"), "drelu", "gate"),
        (ObjectiveSettings(act="relu", objective="topk", top_k=30), "relu", "topk:30"),
        (ObjectiveSettings(act="relu", objective="clipped"), "sparseinfer_relu", "gate"),
        (ObjectiveSettings(act="relu", objective="stochastic"), "relu", "gate"),
    ],
    ids=["prosparse", "relu2", "drelu", "topk", "clipped", "stochastic"],
)
def test_the_result_computes_what_was_trained(tune, make_model, objective, act, mask):
    done = tune(objective)
    (result,) = done.results
    found = Checkpoint.open(result.path)
    assert found.raw["hidden_act"] == act
    assert found.record is not None
    assert found.record.mask == mask
    assert found.record.parent.reference == str(make_model())
    tuned = found.record.finetuning
    assert tuned is not None
    assert (tuned.objective, tuned.tokens) == (objective.objective, 1024)
    assert tuned.layer_sparsity == pytest.approx(
        read_metrics(result.path / "finetuning.jsonl")[-1].layers
    )
    assert not done.folder.exists()
    # What runs is the function that the last steps trained, of the weights that were written.
    model = sparseinfer.load(result.path, weights="fp32")
    ids = list(range(3, 40))
    trained = load_student(
        Checkpoint.open(make_model()), check_objective(objective), start=tensors(result.path)
    )
    trained.at(1.0)
    with torch.no_grad():
        wanted = trained.model(input_ids=torch.tensor([ids])).logits[0]
    torch.testing.assert_close(model.logits(ids), wanted, atol=1e-3, rtol=1e-3)
    # What decoding counts is what training recorded, on the same activation.
    model.reset_sparsity()
    list(model.generate(ids, max_tokens=8, stop_ids=()))
    counts = model.sparsity()
    assert counts is not None
    assert counts.neuron_sparsity(model.config)[0] == pytest.approx(
        tuned.layer_sparsity[0], abs=0.2
    )


def test_controls_stand_beside_it_and_are_reported(tune, tmp_path):
    done = tune(ObjectiveSettings(act="relu", distill=0.5), controls=True)
    assert [one.name for one in done.results] == ["tuned", "dense", "plain-relu"]
    dense = Checkpoint.open(tmp_path / "out-dense")
    assert (dense.record, dense.raw["hidden_act"]) == (None, "silu")
    assert (tmp_path / "out-dense" / "finetuning.jsonl").exists()
    report = finetuning_report(done.results, text="pydoc", tokens=400)
    assert [run.role for run in report.runs] == ["tuned", "dense_control", "relu_control"]
    for run in report.runs:
        found = run.measurements[0]
        assert found.quality.dense is not None
        assert (found.control is None) == (run.role == "dense_control")
        assert run.curves is not None
        assert run.curves.steps == 4
    assert report.runs[0].measurements[0].sparsity.neuron > 0.3
    assert report.runs[1].measurements[0].sparsity.neuron == 0


def test_warm_start_alone(tune):
    done = tune(warm_start=1024, warm_start_only=True)
    (result,) = done.results
    record = Checkpoint.open(result.path).record
    assert record is not None
    assert record.finetuning is not None
    assert (record.finetuning.objective, record.finetuning.tokens) == ("warm-start", 0)
    assert record.finetuning.warm_start_tokens == 1024
    report = finetuning_report(done.results, text="pydoc", tokens=300)
    assert report.runs[0].role == "warm_start"


def test_what_was_trained_on_is_not_held_out(tune, prose_file):
    (result,) = tune().results
    with pytest.raises(ConfigError, match="fine-tuned on text"):
        evaluate(str(result.path), text=str(prose_file), tokens=64)


def test_fatrelu_gets_thresholds_of_its_own(tune):
    (result,) = tune(ObjectiveSettings(act="fatrelu"), shift_budget=0.5, test_text="pydoc").results
    found = Checkpoint.open(result.path)
    assert found.record is not None
    assert found.record.method == "fatrelu"
    assert found.record.budget is not None
    assert found.record.finetuning is not None
    assert all(bool((one > 0).all()) for one in found.thresholds())


@pytest.mark.parametrize("tied", [False, True])
def test_an_interrupted_run_goes_on_with_the_same_request(tune, make_model, tmp_path, tied):
    model = make_model(tie_word_embeddings=tied)
    whole = tune(name="whole", model=model)
    assert not tune(name="cut", model=model, budget=Budget(end=0)).finished
    assert not (tmp_path / "cut").exists()
    assert tune(name="cut", model=model).finished
    assert ("lm_head.weight" in tensors(tmp_path / "cut")) == (not tied)
    one, other = tensors(whole.results[0].path), tensors(tmp_path / "cut")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_is_done_with_the_results_is_done_again(make_model, prose_file, tmp_path):
    """A report that was interrupted: nothing is trained or written a second time."""
    seen: list[tuple[int, int]] = []

    def go(on_results):
        return finetune(
            str(make_model()),
            Request(ObjectiveSettings(act="relu"), RUN, texts=(str(prose_file),), warm_start=0),
            out=tmp_path / "out",
            cpu=True,
            on_step=lambda _name, step, steps: seen.append((step.step, steps)),
            on_results=on_results,
        )

    with pytest.raises(KeyboardInterrupt):
        go(interrupted)
    assert seen[-1] == (4, 4)
    written = (tmp_path / "out" / "config.json").stat().st_mtime_ns
    told = []
    done = go(told.append)
    assert told == [done.results]
    assert [step.step for step in done.results[0].steps] == [1, 2, 3, 4]
    assert len(seen) == 4
    assert (tmp_path / "out" / "config.json").stat().st_mtime_ns == written
    assert not done.folder.exists()
    with pytest.raises(OutputError, match="exists"):
        go(told.append)


def interrupted(_results):
    raise KeyboardInterrupt


def test_a_warm_start_alone_is_not_taken_for_what_was_trained(make_model, prose_file, tmp_path):
    """Interrupted in its report, then asked for with training: all but that is the same."""

    def go(alone, on_results=lambda _results: None, **options):
        request = Request(
            ObjectiveSettings(act="relu"),
            RUN.model_copy(update={"tokens": 0, "batch": 64, "micro_batch": 32}),
            texts=(str(prose_file),),
            warm_start=1024,
            warm_start_only=alone,
        )
        out = tmp_path / "out"
        return finetune(
            str(make_model()), request, out=out, cpu=True, on_results=on_results, **options
        )

    with pytest.raises(KeyboardInterrupt):
        go(True, interrupted)
    with pytest.raises(OutputError, match="already exists"):
        go(False)
    (result,) = go(False, force=True).results
    record = Checkpoint.open(result.path).record
    assert record is not None
    assert record.finetuning is not None
    assert record.finetuning.objective == "prosparse"
    assert record.finetuning.tokens == result.steps[-1].tokens > 0


def test_a_run_that_was_begun_is_not_ended_as_a_warm_start(tune):
    tune(warm_start=1024, budget=Budget(end=0))  # stops in the warm start
    for _ in range(3):
        done = tune(warm_start=1024, budget=Budget(end=0))
    assert (done.folder / "tuned" / "state").exists()
    with pytest.raises(ConfigError, match="warm_start_only false, not true"):
        tune(warm_start=1024, warm_start_only=True)


def test_thresholds_of_another_budget_are_searched_for_anew(make_model, prose_file, tmp_path):
    def go(budget, on_results=lambda _results: None, **options):
        request = Request(
            ObjectiveSettings(act="fatrelu"), RUN, texts=(str(prose_file),), warm_start=0,
            shift_budget=budget, test_text="pydoc",
        )  # fmt: skip
        return finetune(
            str(make_model()), request, out=tmp_path / "out", cpu=True, open_probe=ModelProbe,
            on_results=on_results, **options,
        )  # fmt: skip

    with pytest.raises(KeyboardInterrupt):
        go(0.5, interrupted)
    with pytest.raises(OutputError, match="already exists"):
        go(0.3)
    (result,) = go(0.3, force=True).results
    record = Checkpoint.open(result.path).record
    assert record is not None
    assert record.budget is not None
    assert record.budget.perplexity_rise == 0.3


def test_other_settings_are_refused_where_a_run_waits(tune):
    tune(budget=Budget(end=0))
    other = RUN.model_copy(update={"rate": 2e-3, "seed": 7})
    with pytest.raises(ConfigError, match=r"run.rate 0.001, not 0.002; run.seed 0, not 7"):
        tune(run=other)


def test_without_tokens_the_text_is_read_once(tune, prose_file):
    run = RUN.model_copy(update={"tokens": 0, "batch": 64, "micro_batch": 32})
    (result,) = tune(ObjectiveSettings(act="relu", objective="relu"), run=run).results
    record = Checkpoint.open(result.path).record
    assert record is not None
    assert record.finetuning is not None
    assert 0.8 < record.finetuning.epochs <= 1


@pytest.mark.parametrize(
    ("texts", "tokens", "warm_start", "read"),
    [
        (("coqa",), 5000, 0, None),
        (("hf:org/name",), 5000, 0, 5000),
        (("coqa", "hf:org/name"), 5000, 9000, 9000),
        (("hf:org/name",), 5000, None, 6000),
        (("hf:org/name",), 0, 0, None),
    ],
)
def test_of_the_hub_no_more_is_read_than_is_trained_on(texts, tokens, warm_start, read):
    run = RUN.model_copy(update={"tokens": tokens})
    request = Request(ObjectiveSettings(act="relu"), run, texts=texts, warm_start=warm_start)
    assert tokens_to_read(request, 6000 if warm_start is None else 100) == read


def test_refusals(tune, tmp_path, make_model):
    (tmp_path / "few.txt").write_text("too few words")
    with pytest.raises(SourceError, match="one batch"):
        tune(texts=(str(tmp_path / "few.txt"),))
    with pytest.raises(ConfigError, match="no text to train on"):
        tune(texts=())
    with pytest.raises(ConfigError, match="over the model's context of 128"):
        tune(run=RUN.model_copy(update={"context": 129}))
    with pytest.raises(ConfigError, match="does nothing"):
        tune(warm_start_only=True)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    with pytest.raises(OutputError, match="already exists"):
        tune(name="taken")


def test_a_relu_model_is_not_made_another(tune, prose_file):
    (result,) = tune(ObjectiveSettings(act="relu2"), "first").results
    with pytest.raises(UnsupportedError, match="ReLU-fied already, with relu2"):
        tune(ObjectiveSettings(act="relu"), "second", model=result.path)
    again = tune(ObjectiveSettings(act="relu2"), "again", model=result.path, texts=("pydoc",))
    record = Checkpoint.open(again.results[0].path).record
    assert record is not None
    assert record.finetuning is not None
    assert (record.finetuning.earlier_texts, record.finetuning.texts) == (
        (str(prose_file),),
        ("pydoc",),
    )
    for text in (str(prose_file), "pydoc"):
        with pytest.raises(ConfigError, match="fine-tuned on text"):
            evaluate(str(again.results[0].path), text=text, tokens=64)


def test_a_model_that_was_only_converted_learns_from_its_dense_parent(tune, make_model, tmp_path):
    from sparseinfer.convert import convert

    converted = convert(str(make_model()), "relu", out=tmp_path / "swapped")
    done = tune(ObjectiveSettings(act="relu", distill=1.0), model=converted.out, warm_start=None)
    record = Checkpoint.open(done.results[0].path).record
    assert record is not None
    assert record.parent.reference == str(make_model())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_process_is_gone_on_with(make_model, prose_file, tmp_path, number):
    def command(out: Path) -> list[str]:
        return [
            str(Path(sys.executable).with_name("sparseinfer")), "finetune", str(make_model()),
            "--text", str(prose_file), "--tokens", "4096", "--context", "32", "--batch", "8",
            "--micro-batch", "8", "--precision", "fp32", "--no-warm-start", "--save-every", "1",
            "--no-report", "--cpu", "--json", "-o", str(out),
        ]  # fmt: skip

    quiet = os.environ | {"OMP_NUM_THREADS": "1"}
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    process = subprocess.Popen(command(cut), env=quiet, stderr=subprocess.PIPE, text=True)
    state = tmp_path / "cut.training" / "tuned" / "state" / "state.json"
    for _ in range(1200):
        if state.exists() and json.loads(state.read_text())["step"] > 2:
            break
        time.sleep(0.05)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == (-9 if number == signal.SIGKILL else 130)
    assert not cut.exists()
    for out in (cut, whole):
        done = subprocess.run(command(out), env=quiet, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
    one, other = tensors(cut), tensors(whole)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert json.loads(done.stdout)["results"][0]["tokens"] == 4096
