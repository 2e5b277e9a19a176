from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.errors import OutputError, PredictorError, RecallError
from sparseinfer.kernels.lowrank import reference as lowrank_reference
from sparseinfer.kernels.matrix import Matrix
from sparseinfer.kernels.sign import reference as sign_reference
from sparseinfer.packed import Packed
from sparseinfer.packed.pipeline import pack_model
from sparseinfer.predictors import load_predictor
from sparseinfer.predictors.artifact import JSON, TENSORS, read_record


def load(folder, model, **changes):
    checkpoint = Checkpoint.open(model)
    given = {
        "config": checkpoint.config,
        "ffn_sha256": checkpoint.ffn_sha256,
        "thresholds": checkpoint.thresholds(),
        "record": checkpoint.record,
    }
    return load_predictor(folder, **given | changes)


def gates(model):
    tensors = dict(Checkpoint.open(model).read())
    return lambda layer: Matrix.of(tensors[f"model.layers.{layer}.mlp.gate_proj.weight"])


@pytest.fixture(scope="module")
def trained(relu_model, prose_file, tmp_path_factory):
    """A low-rank predictor; read-only."""
    from sparseinfer.predictors import train

    out = tmp_path_factory.mktemp("trained") / "p"
    train(str(relu_model), out=out, text=str(prose_file), tokens=1024, context=64, recall=0.9)
    return out


@pytest.fixture
def broken(trained, tmp_path):
    """A copy to damage."""
    return shutil.copytree(trained, tmp_path / "broken")


@pytest.mark.parametrize("store", ["bf16", "int8"])
def test_what_is_loaded_does_what_was_recorded(train, make_model, store):
    # Rows of int8 are padded to 64 columns: a smaller model has no room for them.
    model = make_model(hidden_act="relu", hidden_size=64, intermediate_size=160)
    done = train(model, store=store, rank=3, accept=True)
    found = load(done.out, model)
    assert found.record == done.record
    layers = found.layers(lambda layer: pytest.fail("asked for a gate"))
    assert [one.rank for one in layers] == [3, 3, 3]
    assert layers[0].inward.format == store
    assert [one.bytes_per_token for one in layers] == [
        one.bytes_per_token for one in found.record.layers
    ]
    assert found.record.trained_on.tokens == 2048
    candidates = lowrank_reference.candidates(torch.randn(4, 64), layers[0])
    assert candidates.shape == (4, 160)


def test_sign_stores_numbers_only(train, relu_model):
    done = train(kind="sign", recall=0.7, accept=True)
    assert [path.name for path in done.out.iterdir()] == [JSON]
    layers = load(done.out, relu_model).layers(gates(relu_model))
    assert [one.most for one in layers] == [one.most for one in done.record.layers]
    assert sign_reference.candidates(torch.randn(2, 48), layers[0]).shape == (2, 112)
    for layer in done.record.layers:
        assert layer.quality.recall > 0.65


def test_captured_data_gives_the_same_predictor_as_running_the_model(train, capture, tmp_path):
    capture()
    train(data=tmp_path / "c", out=tmp_path / "from-data")
    train(out=tmp_path / "running")
    for name in (JSON, TENSORS):
        assert (tmp_path / "from-data" / name).read_bytes() == (
            tmp_path / "running" / name
        ).read_bytes()


def test_it_fits_the_packed_model_and_lies_beside_weights(make_sparse, train, tmp_path):
    model = make_sparse(hidden_act="relu", gate_threshold=0.2)
    done = train(model, accept=True)
    pack_model(str(model), "int8", out=tmp_path / "packed")
    packed = Packed.open(tmp_path / "packed")
    found = load_predictor(
        done.out,
        config=packed.config,
        ffn_sha256=packed.source.ffn_sha256,
        thresholds=packed.thresholds(),
        record=packed.record,
    )
    assert len(found.lowrank) == 3
    beside = shutil.copytree(model, tmp_path / "model")
    shutil.copytree(done.out, beside, dirs_exist_ok=True)
    assert load(beside, beside).record == done.record


def test_a_predictor_of_another_model_is_refused(trained, relu_model, make_model):
    other = make_model(hidden_act="relu", seed=1)
    with pytest.raises(PredictorError, match=r"does not fit the model: .* other FFN weights"):
        load(trained, other)
    checkpoint = Checkpoint.open(relu_model)
    thresholds = [torch.full((112,), 0.1)] * 3
    with pytest.raises(PredictorError, match="other thresholds"):
        load(trained, relu_model, thresholds=thresholds)
    with pytest.raises(PredictorError, match=r"other thresholds .or another activation"):
        load(trained, relu_model, config=replace(checkpoint.config, phi="relu2"))
    with pytest.raises(PredictorError, match="made for 3 layers, the model has 5"):
        load(trained, relu_model, config=replace(checkpoint.config, num_layers=5))
    with pytest.raises(PredictorError, match="H 48 and I 112, the model has H 48 and I 96"):
        load(trained, relu_model, config=replace(checkpoint.config, intermediate_size=96))


def edit(folder, **changes):
    file = folder / JSON
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_damaged_predictors_are_refused(broken, relu_model, tmp_path):
    def refused(match):
        with pytest.raises(PredictorError, match=match):
            load(broken, relu_model)

    whole = {path.name: path.read_bytes() for path in broken.iterdir()}

    def restore():
        for name, content in whole.items():
            (broken / name).write_bytes(content)

    edit(broken, format_version=9)
    refused("format version 9 is not known")
    restore()
    edit(broken, recall=2)
    refused("damaged: recall")
    restore()
    edit(broken, layers=[])
    refused("lists 0 of 3 layers")
    restore()
    edit(broken, recall=0.8)
    refused("does not belong to the predictor.json")
    restore()
    (broken / JSON).write_text("{")
    refused("not valid JSON")
    restore()
    (broken / TENSORS).write_bytes(whole[TENSORS][:-10])
    refused("damaged or truncated")
    restore()
    tensors = load_file(broken / TENSORS)
    from safetensors import safe_open

    with safe_open(broken / TENSORS, "pt") as file:
        metadata = file.metadata()
    save_file({**tensors, "layers.0.bias": torch.zeros(5)}, broken / TENSORS, metadata)
    refused("layer 0: bias must be")
    nan = tensors["layers.1.inward"] * torch.nan
    save_file({**tensors, "layers.1.inward": nan}, broken / TENSORS, metadata)
    refused("layer 1 holds NaN")
    del tensors["layers.2.bias"]
    save_file(tensors, broken / TENSORS, metadata)
    refused("expected exactly 9 tensors")
    (broken / TENSORS).unlink()
    refused("predictor.safetensors is missing")
    (broken / JSON).unlink()
    refused("no predictor.json")
    with pytest.raises(PredictorError, match=r"no predictor\.json"):
        read_record(tmp_path / "nowhere")


def test_a_recall_that_costs_the_sparsity_is_refused_unless_accepted(train, tmp_path):
    with pytest.raises(RecallError, match="3 of 3 layers keep less than half") as refused:
        train(kind="sign", recall=0.999)
    assert len(refused.value.layers) == 3
    assert not (tmp_path / "p").exists()
    done = train(kind="sign", recall=0.999, accept=True)
    assert done.unmet == (0, 1, 2)
    assert done.record.layers == refused.value.layers
    assert read_record(done.out) == done.record


def test_recall_1_is_accepted_as_it_is(train, relu_model):
    done = train(recall=1.0)
    assert done.unmet == ()
    for layer in load(done.out, relu_model).lowrank:
        assert bool(torch.isinf(layer.bias).all())


def test_only_predictors_are_replaced(train, relu_model, tmp_path):
    train(recall=1.0)
    with pytest.raises(OutputError, match="already exists"):
        train(recall=1.0)
    train(recall=1.0, force=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("precious")
    with pytest.raises(OutputError, match="is not a predictor"):
        train(recall=1.0, force=True, out=tmp_path / "other")
    assert (tmp_path / "other" / "mine.txt").exists()


def test_loading_needs_neither_transformers_nor_training():
    import subprocess
    import sys

    code = (
        "import sys; from sparseinfer.predictors import load_predictor;"
        "bad = {'transformers', 'sparseinfer.layerwise', 'sparseinfer.predictors.training'};"
        "sys.exit(str(bad & set(sys.modules)) if bad & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
