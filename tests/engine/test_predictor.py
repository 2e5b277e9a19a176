"""`load(predictor=)`: a predictor from disk acts, or is refused with the reason."""

from __future__ import annotations

import shutil

import pytest
import torch
from predictor_files import some_lowrank, write_predictor

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.engine import Model, load
from sparseinfer.errors import ConfigError, PredictorError
from sparseinfer.kernels.sign import SignBits
from sparseinfer.packed import open_model
from sparseinfer.packed.pipeline import pack_model

from .oracle import random_ids

IDS = random_ids(40)


@pytest.mark.parametrize("kind", ["lowrank", "sign"])
@pytest.mark.parametrize("weights", ["fp32", "int8", "int4"])
def test_it_chooses_neurons_of_checkpoints_and_artifacts(converted, tmp_path, kind, weights):
    folder = converted("chess")
    predictor = write_predictor(folder, tmp_path / kind, kind)
    expected = load(folder, weights=weights, threads=1)
    if kind == "lowrank":
        layers = some_lowrank(Checkpoint.open(folder))
    else:
        gates = [layer.ffn.gate for layer in expected._weights.layers]
        layers = [SignBits.of(gate, 1.0) for gate in gates]
    expected.set_predictors(layers)
    pack_model(str(folder), weights, out=tmp_path / "packed")
    for model in (
        load(folder, weights=weights, threads=1, predictor=predictor),
        load(tmp_path / "packed", threads=1, predictor=str(predictor)),
    ):
        assert [type(one) for one in model.predictors or []] == [type(layers[0])] * 3
        for by in ("prefill", "decode"):
            assert torch.equal(model.logits(IDS, by=by), expected.logits(IDS, by=by))
            counts = model.sparsity(by)
            assert counts.gate_rows is not None
            assert 0 < sum(counts.gate_rows) < 40 * 3 * 112
        expected.reset_sparsity()
        model.set_predictors(None)
        assert model.sparsity().gate_rows is None


def test_it_may_lie_beside_the_weights(converted, tmp_path):
    folder = shutil.copytree(converted("chess"), tmp_path / "model")
    for path in write_predictor(folder, tmp_path / "own").iterdir():
        shutil.copy(path, folder)
    assert load(folder, threads=1, predictor=folder).predictors is not None
    assert load(folder, threads=1).predictors is None


def test_one_for_another_model_is_refused(converted, make_model, make_sparse, tmp_path):
    predictor = write_predictor(converted("chess"), tmp_path / "lowrank")
    others = {
        "other thresholds": converted("cats"),
        "other FFN weights": make_model(seed=1),
        "made for 3 layers, the model has 2": make_model(num_hidden_layers=2),
        "the model has H 40": make_model(hidden_size=40),
        "other thresholds .or another": make_sparse(mask="sketch:4,64", gate_threshold=0.1),
    }
    for reason, folder in others.items():
        with pytest.raises(PredictorError, match=f"does not fit the model: .*{reason}") as refused:
            load(folder, threads=1, predictor=predictor)
        assert "\n" not in str(refused.value)
        assert str(predictor) in str(refused.value)


def test_what_is_no_predictor_is_refused(converted, tmp_path):
    for path in (tmp_path / "nothing", converted("chess")):
        with pytest.raises(PredictorError, match=r"no predictor\.json"):
            load(converted("chess"), threads=1, predictor=path)


@pytest.mark.parametrize("kind", ["lowrank", "sign"])
def test_a_gate_stored_by_input_takes_none(converted, tmp_path, kind):
    folder = converted("chess")
    source, predictor = open_model(folder), write_predictor(folder, tmp_path / kind, kind)
    with pytest.raises(ConfigError, match="predictor: "):
        Model(source, threads=1, by_input=["gate"], predictor=predictor)
