"""`capture` and `train-predictor`: what they print, and every bad input."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple

import pytest

from .conftest import listing


@pytest.fixture(scope="module")
def relu_model(make_model):
    return make_model(hidden_act="relu")


@pytest.fixture
def options(prose_file):
    return ["--text", prose_file, "--tokens", "1024", "--context", "64"]


@pytest.fixture
def captured(cli, relu_model, options, tmp_path):
    result = cli("capture", relu_model, *options, "-o", tmp_path / "c", "--json")
    assert result.code == 0
    return result.json


def test_capture_says_what_it_wrote(captured, cli, relu_model, options, tmp_path):
    assert captured["layers"] == 3
    assert captured["captured_on"]["tokens"] == 1024
    assert captured["data_bytes"] == 3 * 1024 * (2 * 48 + 14)
    again = cli("capture", relu_model, *options, "-o", tmp_path / "c")
    assert "finished before" in again.out


def test_train_predictor_prints_a_line_per_layer(cli, relu_model, captured, tmp_path):
    out = tmp_path / "p"
    result = cli(
        "train-predictor", relu_model, "--data", tmp_path / "c", "--recall", "90%", "-o", out
    )
    assert result.code == 0
    assert len(result.out.splitlines()) == 2 + 3 + 1
    assert "true sparsity" in result.out
    assert f"written to {out}" in result.out
    assert listing(tmp_path) == ["c", "p"]


def test_a_target_that_is_missed_is_status_3_and_accepted_on_request(
    cli, relu_model, options, tmp_path
):
    command = ["train-predictor", relu_model, *options, "--kind", "sign", "--recall", "0.999",
               "-o", tmp_path / "p"]  # fmt: skip
    refused = cli(*command)
    assert refused.code == 3
    assert refused.out.count("below half") == 3
    assert refused.err.startswith("error: at recall 0.999 the predictors of 3 of 3 layers")
    assert not (tmp_path / "p").exists()
    as_json = cli(*command, "--json")
    assert as_json.code == 3
    assert as_json.json["output"] is None
    assert len(as_json.json["layers"]) == 3
    accepted = cli(*command, "--accept", "--json")
    assert accepted.code == 0
    assert accepted.json["layers"] == as_json.json["layers"]
    assert (tmp_path / "p" / "predictor.json").exists()


def test_few_tokens_are_warned_of_and_very_few_refused(
    cli, fails, relu_model, prose_file, tmp_path, caplog
):
    command = ["train-predictor", relu_model, "--text", prose_file, "-o", tmp_path / "p"]
    assert "999 tokens are too few" in fails(*command, "--tokens", "999")
    assert listing(tmp_path) == []
    assert cli(*command, "--tokens", "1000", "--context", "64", "--recall", "0.9").code == 0
    warned = [record for record in caplog.records if record.levelname == "WARNING"]
    assert any("fewer than 300000" in record.getMessage() for record in warned)


def test_a_text_of_too_few_tokens(fails, relu_model, tmp_path):
    (tmp_path / "short.txt").write_text("a few words")
    message = fails("capture", relu_model, "--text", tmp_path / "short.txt", "-o", tmp_path / "out")
    assert "11 tokens" in message
    assert listing(tmp_path) == ["short.txt"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--recall", "0"], "recall 0.0 is outside (0, 1]"),
        (["--recall", "1.01"], "outside (0, 1]"),
        (["--recall", "nan"], "outside (0, 1]"),
        (["--recall", "much"], "--recall 'much'"),
        (["--kind", "oracle"], "kind 'oracle' is not one of lowrank, sign"),
        (["--rank", "0"], "rank 0 is not between 1 and"),
        (["--rank", "9999"], "at most 10% of the FFN's bytes"),
        (["--store", "int4"], "store 'int4' is not one of bf16, int8"),
        (["--kind", "sign", "--rank", "4"], "--rank belongs to lowrank"),
        (["--kind", "sign", "--store", "int8"], "--store belongs to lowrank"),
        (["--dtype", "fp8"], "dtype 'fp8'"),
        (["--context", "100000"], "context 100000"),
        (["--seed", "99999999999999999999"], "seed"),
        (["--data", "nowhere"], "--text was settled when --data was captured"),
    ],
)
def test_bad_options(fails, relu_model, options, tmp_path, arguments, expected):
    message = fails("train-predictor", relu_model, *options, *arguments, "-o", tmp_path / "p")
    assert expected in message
    assert listing(tmp_path) == []


def test_models_that_have_no_gate_mask(fails, make_model, make_sparse, options, tmp_path):
    for model, reason in (
        (make_model(), "is dense"),
        (make_sparse(("gate", "up")), "no gate mask to predict"),
        (make_sparse(mask="topk:9"), "chosen by topk"),
    ):
        for command in ("capture", "train-predictor"):
            assert reason in fails(command, model, *options, "-o", tmp_path / "p")
    assert listing(tmp_path) == []


def test_packed_models(fails, relu_model, options, tmp_path):
    from sparseinfer.packed.pipeline import pack_model

    pack_model(str(relu_model), "int8", out=tmp_path / "packed")
    message = fails("capture", tmp_path / "packed", *options, "-o", tmp_path / "c")
    assert "give the checkpoint it was packed from" in message


def test_data_of_another_model(fails, captured, make_model, make_sparse, tmp_path):
    for model, reason in (
        (make_model(hidden_act="relu", seed=1), "other FFN weights"),
        (make_model(hidden_act="relu", num_hidden_layers=2), "made for 3 layers, the model has 2"),
        (make_sparse(model={"hidden_act": "relu"}, hidden_act="relu", gate_threshold=0.1),
         "other thresholds"),
    ):  # fmt: skip
        message = fails("train-predictor", model, "--data", tmp_path / "c", "-o", tmp_path / "p")
        assert "captured data of another model" in message
        assert reason in message
    assert listing(tmp_path) == ["c"]


def test_incomplete_and_damaged_data(fails, captured, relu_model, tmp_path):
    folder, file = tmp_path / "c", tmp_path / "c" / "capture.json"
    whole = json.loads(file.read_text())

    def refused(content=None):
        if content is not None:
            file.write_text(json.dumps(content))
        return fails("train-predictor", relu_model, "--data", folder, "-o", tmp_path / "p")

    shards = {key: value for key, value in whole["shards"].items() if key != "1"}
    assert "incomplete: 1 of 3 layers are missing" in refused({**whole, "shards": shards})
    assert "version 7 is not known" in refused({**whole, "format_version": 7})
    outside = {**whole["shards"], "0": [{"file": "../layer-0-0.safetensors", "rows": 1024}]}
    assert "damaged: shards.0.0.file" in refused({**whole, "shards": outside})
    fewer = {**whole["shards"], "0": [{**whole["shards"]["0"][0], "rows": 10}]}
    assert "layer 0 lacks rows" in refused({**whole, "shards": fewer})
    shard = folder / "layer-000-000.safetensors"
    shard.write_bytes(shard.read_bytes()[:200])
    assert "missing or damaged" in refused(whole)
    shutil.copy(folder / "capture.json", shard)
    assert "missing or damaged" in refused(whole)
    file.write_text("nonsense")
    assert "not valid JSON" in refused()
    file.unlink()
    assert "no capture.json" in refused()
    assert not (tmp_path / "p").exists()


def test_a_folder_that_holds_something_else(fails, relu_model, options, captured, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    message = fails("capture", relu_model, *options, "-o", tmp_path / "mine")
    assert "is no captured data" in message
    message = fails("capture", relu_model, *options, "--seed", "3", "-o", tmp_path / "c")
    assert "begun with seed 0, not 3" in message
    assert listing(tmp_path / "mine") == ["thesis.tex"]


def test_a_disk_that_is_too_small(fails, relu_model, options, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 5000, 5000))
    message = fails("capture", relu_model, *options, "-o", tmp_path / "c")
    assert "captured data needs 0.005 GB" in message
    assert "has 0.000 GB free" in message
    assert listing(tmp_path) == []


def test_a_disk_that_fills_up(fails, relu_model, options, small_disk, monkeypatch):
    disk = small_disk(200)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, 10**9))
    message = fails("capture", relu_model, *options, "-o", disk / "c")
    assert "No space left on device" in message
    assert "finished layers are kept" in message
    assert listing(disk / "c") == ["capture.json", "layer-000-000.safetensors"]
