"""Evaluations as reports: the schema holds, every figure arrives, runs repeat."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from sparseinfer import config as records
from sparseinfer.convert import convert
from sparseinfer.eval import evaluate
from sparseinfer.eval.report import evaluation_report
from sparseinfer.eval.report_parts import conversion
from sparseinfer.machine import hardware
from sparseinfer.report import json_text, write

PUBLISHED = Path(__file__).parents[2] / "docs" / "report.schema.json"
LAYERS, NEURONS = 3, 112


def _content(found, **more):
    """The report as JSON values, checked against the published schema."""
    content = json.loads(json_text(evaluation_report(found, **more)))
    jsonschema.Draft202012Validator(json.loads(PUBLISHED.read_text("utf-8"))).validate(content)
    return content


@pytest.fixture(scope="module")
def found(sparse, short_text):
    return evaluate(str(sparse), text=short_text, context=64, ppl_p=0.05, threads=1)


def test_every_figure_of_a_converted_model_arrives(found, sparse, dense, short_text):
    content = _content(found)
    assert content["model"] == {
        "name": sparse.name, "parent": dense.name, "family": "llama", "layers": LAYERS,
        "hidden_size": 48, "intermediate_size": NEURONS, "weights": "fp32",
        "ffn_sha256": found.record.parent.ffn_sha256,
    }  # fmt: skip
    (text,) = content["texts"]
    assert text == {
        "name": short_text, "sha256": found.recipe.text_sha256,
        "tokens": found.recipe.tokens_scored, "bytes": found.recipe.bytes_scored,
        "context": 64, "stride": 64, "special_prefix": [], "by": "prefill",
    }  # fmt: skip
    (one,) = content["measurements"]
    assert one["text"] == short_text
    assert one["quality"]["perplexity"] == found.perplexity
    assert one["quality"]["bits_per_byte"] == found.bits_per_byte
    dense_part, comparison = one["quality"]["dense"], found.comparison
    for name in ("parent", "weights", "perplexity", "kl", "top1_agreement"):
        assert dense_part[name] == getattr(comparison, name)
    assert dense_part["ratio"] == comparison.perplexity_ratio
    interval = dense_part["ratio_interval"]
    assert (interval["low"], interval["high"]) == (
        comparison.interval.low,
        comparison.interval.high,
    )
    assert (interval["standard_error"], interval["windows"]) == (comparison.interval.stderr, 11)
    assert interval["level"] == 0.95
    for name in ("neuron", "ffn_bytes", "model_bytes", "bytes_per_token_read"):
        assert one["sparsity"][name] == getattr(found.sparsities, name)
    assert one["sparsity"]["inputs"] == {}
    prefill, decode = content["phases"]
    assert (prefill["phase"], prefill["tokens"]) == ("prefill", found.prefill.tokens)
    assert (decode["phase"], decode["tokens"]) == ("decode", found.decode.tokens)
    assert decode["sparsity"]["model_bytes"] == found.decode.sparsities.model_bytes
    assert decode["layers"] == list(found.decode.layer_sparsity)
    record = content["conversion"]["record"]
    assert record == found.record.model_dump(mode="json")
    assert content["conversion"]["search"] is None
    assert content["tasks"] == []
    assert content["harness"] is None
    assert content["warnings"] == []


def test_every_figure_of_a_layer_arrives(found):
    content = _content(found)
    assert content["firing"] == {
        "text": found.recipe.text, "tokens": found.firing.tokens, "context": 64, "hot_from": 0.5,
    }  # fmt: skip
    for index, layer in enumerate(content["layers"]):
        own = found.firing.layers[index]
        assert layer["layer"] == index
        assert layer["realised_sparsity"] == found.layer_sparsity[index]
        assert layer["target_sparsity"] == found.record.calibration.layer_sparsity[index]
        assert layer["cett"] == own.cett
        gates = found.threshold_deciles["neurons"][index]
        assert layer["thresholds"] == {
            "neurons": {"min": gates[0], "deciles": list(gates[1:10]), "max": gates[10]}
        }
        tokens = own.active_deciles
        assert layer["firing"] == {
            "dead": own.dead, "hot": own.hot, "mean": own.active_mean, "std": own.active_std,
            "per_token": {"min": tokens[0], "deciles": list(tokens[1:10]), "max": tokens[10]},
            "heatmap": list(own.rates),
        }  # fmt: skip


def test_ppl_p_arrives_with_its_search(found):
    (content,) = _content(found)["ppl_p"]
    own = found.ppl_p
    assert (content["p"], content["neuron"], content["cett"]) == (
        0.05,
        own.neuron_sparsity,
        own.cett,
    )
    assert content["perplexity_ratio"] == own.perplexity_ratio
    assert content["perplexity"] == own.perplexity
    assert content["layers"] == list(own.layer_sparsity)
    assert [step["cett"] for step in content["steps"]] == [step.cett for step in own.trace]
    assert content["threshold_tokens"] == own.curve_tokens


def test_what_repeats_the_run_arrives(found, sparse, short_text):
    content = _content(found)
    origin = content["provenance"]
    assert {"python", "sparseinfer", "torch", "transformers"} <= set(origin["versions"])
    assert "lm_eval" not in origin["versions"]
    assert origin["hardware"]["threads"] == 1
    assert origin["hardware"]["logical_cpus"] == hardware()["logical_cpus"]
    assert origin["seed"] is None
    settings = origin["settings"]
    assert (settings["model"], settings["text"]) == (str(sparse), short_text)
    assert (settings["tokens"], settings["context"], settings["stride"]) == (8192, 64, 64)
    assert (settings["ppl_p"], settings["firing_tokens"]) == (0.05, 4096)
    assert (settings["weights"], settings["by"], settings["tasks"]) == ("fp32", "prefill", [])
    assert list(content["timing"]["seconds"]) == [
        "loading", "scoring", "decoding", "watching neurons", "PPL-p search",
    ]  # fmt: skip
    assert content["timing"]["date"].endswith("Z")


def test_a_dense_model_has_no_conversion_and_no_thresholds(dense, short_text):
    content = _content(evaluate(str(dense), text=short_text, tokens=50, firing_tokens=0, threads=1))
    assert content["conversion"] is None
    assert content["model"]["parent"] is None
    quality = content["measurements"][0]["quality"]
    assert quality["dense"] is None
    assert "not converted" in quality["no_dense_because"]
    assert content["no_firing_because"] == "not asked for"
    assert content["firing"] is None
    for layer in content["layers"]:
        assert layer["realised_sparsity"] == 0
        assert (layer["target_sparsity"], layer["firing"], layer["cett"]) == (None, None, None)
        assert layer["thresholds"] == {}
    assert content["warnings"] == []


def test_scalar_thresholds_and_those_on_inputs_arrive(
    dense, make_sparse, prose_file, short_text, tmp_path
):
    out = tmp_path / "cats"
    convert(str(dense), "cats", out=out, sparsity=0.5, text=str(prose_file), calibration_tokens=512)
    options = {"text": short_text, "tokens": 200, "firing_tokens": 128, "threads": 1}
    cats = _content(evaluate(str(out), **options))
    for layer in cats["layers"]:
        gates = layer["thresholds"]["neurons"]
        assert gates["min"] == gates["max"] > 0
    folder = make_sparse(("q", "gate", "down"), gate_threshold=0.1)
    both = evaluate(str(folder), **options)
    content = _content(both)
    assert list(content["measurements"][0]["sparsity"]["inputs"]) == ["q", "gate", "down"]
    for index, layer in enumerate(content["layers"]):
        assert list(layer["thresholds"]) == ["neurons", "q", "gate", "down"]
        assert layer["thresholds"]["neurons"] != layer["thresholds"]["gate"]
        for name, density in both.input_density.items():
            assert layer["inputs"][name] == 1 - density[index] > 0
    mean = sum(layer["inputs"]["q"] for layer in content["layers"]) / LAYERS
    assert content["measurements"][0]["sparsity"]["inputs"]["q"] == pytest.approx(mean)


def test_drelu_without_thresholds_still_fires_sparsely(dense, short_text, tmp_path):
    convert(str(dense), "drelu", out=tmp_path / "drelu")
    content = _content(
        evaluate(str(tmp_path / "drelu"), text=short_text, tokens=200, firing_tokens=128, threads=1)
    )
    assert content["conversion"]["record"]["psi"] == "relu"
    for layer in content["layers"]:
        assert layer["thresholds"] == {}
        assert layer["target_sparsity"] is None
        assert 0.3 < layer["realised_sparsity"] < 0.7
        assert layer["firing"]["mean"] == pytest.approx(1 - layer["realised_sparsity"], abs=0.15)


def test_what_is_not_finite_becomes_null(found):
    endless = ((0.0,) * 5 + (math.inf,) * 6,) * LAYERS
    content = _content(replace(found, perplexity=math.inf, threshold_deciles={"neurons": endless}))
    assert content["measurements"][0]["quality"]["perplexity"] is None
    assert content["layers"][0]["thresholds"]["neurons"]["deciles"][3:] == [0.0] + [None] * 5


def test_readers_are_warned(found, sparse, prose_file, short_text):
    calm = _content(found)["warnings"]
    assert calm == []
    off = replace(found, layer_sparsity=(0.5, 0.9, 0.5))
    (said,) = _content(off)["warnings"]
    assert "layer 1, 90.0% in place of" in said
    text = {"tokens": 50, "firing_tokens": 0, "threads": 1}
    seen = evaluate(str(sparse), text=str(prose_file), allow_same_text=True, **text)
    assert any("calibrated on" in one for one in _content(seen)["warnings"])
    assert any("one window" in one for one in _content(seen)["warnings"])


def test_a_parent_that_is_gone_is_said_and_still_named(orphan, short_text):
    parent, child = orphan
    parent.rename(parent.with_name("moved"))
    content = _content(evaluate(str(child), text=short_text, tokens=50, firing_tokens=0, threads=1))
    assert content["model"]["parent"] == "parent"
    (said,) = content["warnings"]
    assert said.startswith("Not compared with the dense parent: ")


def test_a_budget_search_arrives_as_model_bytes(found):
    steps = tuple(
        records.BudgetStep(
            allocation="uniform",
            knob=knob,
            perplexity_ratio=1 + knob / 10,
            bytes_read=1e6 * (1 - saved),
            model_byte_sparsity=saved,
            layer_sparsity=(knob,) * LAYERS,
        )
        for knob, saved in ((0.4, 0.25), (0.2, 0.125))
    )
    tested = records.TestRecord(
        text="two", text_sha256="1", tokens=9, dense_perplexity=8.0, perplexity_ratio=1.03
    )
    budget = records.BudgetRecord(
        perplexity_rise=0.02,
        text="one",
        text_sha256="0",
        tokens=99,
        dense_perplexity=7.0,
        best=steps[1],
        trace=steps,
        test=tested,
    )
    record = found.record.model_copy(update={"budget": budget})
    search = conversion(record).search
    assert (search.budget, search.text, search.tokens, search.chosen) == (0.02, "one", 99, 1)
    assert [step.model_bytes for step in search.steps] == pytest.approx([0.25, 0.125])
    assert [step.parameter for step in search.steps] == [0.4, 0.2]
    assert search.check.perplexity_ratio == 1.03
    content = _content(replace(found, record=record, conversion=conversion(record)))
    assert content["conversion"]["search"]["chosen"] == 1


def test_pages_show_what_was_measured(found, tmp_path):
    write(evaluation_report(found), tmp_path)
    markdown = (tmp_path / "report.md").read_text("utf-8")
    page = (tmp_path / "report.html").read_text("utf-8")
    for shown in (
        f"{found.comparison.perplexity_ratio:.4f}",
        f"{found.comparison.interval.low:.4f} to {found.comparison.interval.high:.4f}",
        f"{100 * found.sparsities.model_bytes:.2f}%",
        f"{100 * found.decode.sparsities.neuron:.2f}%",
        f"{100 * found.firing.layers[2].active_std:.2f}%",
        f"{100 * found.ppl_p.layer_sparsity[1]:.2f}%",
    ):
        assert shown in markdown
        assert all(part in page for part in shown.split(" to "))
    assert "Thresholds on gate activations" in page
