"""`eval --predictor`: what is found and lost, beside gate-first and the oracle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import sparseinfer
from sparseinfer.errors import ConfigError, PredictorError
from sparseinfer.eval import evaluate
from sparseinfer.eval.caveats import caveats
from sparseinfer.eval.predictor import layer_qualities
from sparseinfer.eval.report import evaluation_report
from sparseinfer.eval.rules import rules_of
from sparseinfer.packed.pipeline import pack_model
from sparseinfer.report import json_text
from sparseinfer.sparsity import counted_bytes

LAYERS, NEURONS = 3, 112


@pytest.fixture(scope="module")
def predictor(sparse, prose_file, tmp_path_factory) -> Path:
    """A sign predictor of the sparse model."""
    from sparseinfer.predictors import train

    out = tmp_path_factory.mktemp("predictor") / "sign"
    train(
        str(sparse), kind="sign", text=str(prose_file), tokens=2048, context=64, recall=0.9,
        accept=True, out=out,
    )  # fmt: skip
    return out


@pytest.fixture(scope="module")
def found(sparse, predictor, short_text):
    return evaluate(
        str(sparse), text=short_text, context=64, predictor=str(predictor), firing_tokens=256,
        threads=1,
    )  # fmt: skip


def test_gate_first_and_oracle_stand_beside_the_predictor(found, sparse, short_text):
    without = evaluate(str(sparse), text=short_text, context=64, threads=1)
    gate_first = found.predictor.gate_first
    assert gate_first.perplexity == pytest.approx(without.perplexity, rel=1e-6)
    assert found.perplexity != pytest.approx(without.perplexity, rel=1e-6)
    # Gate-first reads what the model reads alone, the oracle of the gate only what fires.
    assert gate_first.sparsity.sparsities == without.sparsities
    read, known = gate_first.sparsity.bytes, gate_first.oracle.bytes
    density = 1 - without.sparsities.neuron
    assert known.parts["gate"] == pytest.approx(density * read.parts["gate"])
    assert {name: known.parts[name] for name in ("up", "down", "head")} == {
        name: read.parts[name] for name in ("up", "down", "head")
    }
    assert known.parts["predictor"] == 0
    own = found.bytes.parts
    assert own["predictor"] == LAYERS * NEURONS * 8  # 48 sign bits fill one word
    assert known.parts["gate"] < own["gate"] < read.parts["gate"]


def test_layers_are_measured_where_nothing_is_lost_before_them(found, sparse, predictor):
    model = sparseinfer.load(sparse, predictor=predictor, threads=1)
    assert len(found.predictor.layers) == LAYERS
    assert found.predictor.tokens == 256
    for index, quality in enumerate(found.predictor.layers):
        assert 0.6 < quality.recall <= 1
        assert 0 < quality.output_error < 1
        assert quality.true_sparsity == pytest.approx(0.5, abs=0.15)
        assert found.predictor.bytes_per_token[index] == model.predictors[index].bytes_per_token


def test_a_predictor_that_lets_all_through_loses_nothing(sparse, predictor):
    from dataclasses import replace

    from sparseinfer.checkpoint import Checkpoint

    model = sparseinfer.load(sparse, predictor=predictor, threads=1)
    everything = [replace(one, most=one.hidden) for one in model.predictors]
    nothing = [replace(one, most=-1) for one in model.predictors]
    windows = torch.randint(3, 250, (2, 32), generator=torch.Generator().manual_seed(0))
    checkpoint = Checkpoint.open(sparse)

    def measured(predictors):
        return layer_qualities(checkpoint, rules_of(model), predictors, windows, dtype="fp32")

    for quality in measured(everything):
        assert (quality.recall, quality.predicted_sparsity, quality.output_error) == (1, 0, 0)
        assert quality.precision == pytest.approx(1 - quality.true_sparsity)
    for quality in measured(nothing):
        assert (quality.recall, quality.predicted_sparsity) == (0, 1)
        assert quality.output_error == pytest.approx(1)


def test_all_of_it_arrives_in_the_report(found):
    content = json.loads(json_text(evaluation_report(found)))
    one = content["predictor"]
    assert (one["kind"], one["target_recall"]) == ("sign", 0.9)
    assert [layer["recall"] for layer in one["layers"]] == [
        layer.recall for layer in found.predictor.layers
    ]
    assert one["mean"]["recall"] == pytest.approx(
        sum(layer["recall"] for layer in one["layers"]) / LAYERS
    )
    by_name = {variant["finds_by"]: variant for variant in one["variants"]}
    assert by_name["predictor"]["perplexity"] == found.perplexity
    assert by_name["oracle"]["perplexity"] == by_name["gate"]["perplexity"]
    reads = [by_name[name]["sparsity"]["bytes_per_token_read"] for name in ("oracle", "gate")]
    assert reads[0] < reads[1]
    for variant in by_name.values():
        parts = {part["part"]: part for part in variant["sparsity"]["parts"]}
        assert parts["predictor"]["dense"] == 0
        assert sum(part["read"] for part in parts.values()) == pytest.approx(
            variant["sparsity"]["bytes_per_token_read"], abs=1
        )


def test_what_falls_short_is_a_caveat(found):
    from dataclasses import replace

    qualities = tuple(
        one.model_copy(update={"recall": 0.5, "predicted_sparsity": 0.1})
        for one in found.predictor.layers
    )
    short = replace(found, predictor=replace(found.predictor, layers=qualities))
    text = " ".join(caveats(short))
    assert "finds 50.0% of the neurons that fire here, not the 90.0%" in text
    assert "loses more than half of the sparsity" in text


def test_of_a_packed_model_layers_are_left_out(sparse, predictor, short_text, tmp_path):
    pack_model(str(sparse), weights="bf16", out=tmp_path / "packed")
    found = evaluate(
        str(tmp_path / "packed"), text=short_text, context=64, predictor=str(predictor), threads=1
    )
    assert found.predictor.layers == ()
    assert "watched in a checkpoint" in found.predictor.no_layers_because
    content = json.loads(json_text(evaluation_report(found)))
    assert content["predictor"]["mean"] is None
    assert len(content["predictor"]["variants"]) == 3


def test_parts_add_up(found, sparse):
    model = sparseinfer.load(sparse, threads=1)
    list(model.generate([5, 6, 7], max_tokens=3))
    counted = counted_bytes(model.config, model.formats, model.sparsity())
    assert sum(counted.parts.values()) == pytest.approx(counted.model_read)
    assert sum(counted.dense_parts.values()) == pytest.approx(counted.model_dense)


def test_bad_predictors_are_refused(sparse, dense, predictor, short_text, tmp_path):
    def run(model=sparse, folder=predictor, **more):
        return evaluate(str(model), text=short_text, predictor=str(folder), threads=1, **more)

    with pytest.raises(PredictorError, match=r"no predictor\.json"):
        run(folder=tmp_path)
    broken = shutil.copytree(predictor, tmp_path / "broken")
    (broken / "predictor.json").write_text("{")
    with pytest.raises(PredictorError, match="damaged"):
        run(folder=broken)
    with pytest.raises(PredictorError, match="thresholds"):
        run(model=dense)
    with pytest.raises(ConfigError, match="PPL-p"):
        run(ppl_p=0.05)
