"""Thresholds on inputs in a checkpoint: written, read back, and refused where they do not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.errors import CheckpointError

from .edits import edit_shard, load_shard, set_record, shard_of

PROJECTIONS = ("q", "o", "down")


@pytest.fixture
def sparse(make_sparse, tmp_path) -> Path:
    return Path(shutil.copytree(make_sparse(PROJECTIONS, gate_threshold=0.1), tmp_path / "copy"))


@pytest.fixture
def ffn_only(make_sparse, tmp_path) -> Path:
    return Path(shutil.copytree(make_sparse(("gate", "down")), tmp_path / "ffn"))


def _read(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    checkpoint.thresholds()
    checkpoint.input_thresholds()


def refused(folder: Path, *parts: str) -> None:
    with pytest.raises(CheckpointError) as refusal:
        _read(folder)
    for part in parts:
        assert part in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_what_is_written_is_read(sparse):
    checkpoint = Checkpoint.open(sparse)
    assert checkpoint.record is not None
    assert checkpoint.record.input_thresholds == PROJECTIONS
    found = checkpoint.input_thresholds()
    stored, metadata = load_shard(sparse / "sparsity.safetensors")
    assert len(stored) == 3 * 4
    assert metadata == {"weights_sha256": checkpoint.weights_sha256}
    for name, size in (("q", 48), ("o", 48), ("down", 112)):
        assert [one.shape for one in found[name]] == [(size,)] * 3
        for layer, one in enumerate(found[name]):
            assert torch.equal(one, stored[f"layers.{layer}.input_threshold.{name}"])
    for layer, one in enumerate(checkpoint.thresholds()):
        assert torch.equal(one, stored[f"layers.{layer}.ffn.threshold"])


def test_thresholds_of_the_ffn_alone_are_bound_to_the_ffn_alone(ffn_only):
    checkpoint = Checkpoint.open(ffn_only)
    _, metadata = load_shard(ffn_only / "sparsity.safetensors")
    assert metadata == {"ffn_sha256": checkpoint.ffn_sha256}
    assert list(checkpoint.input_thresholds()) == ["gate", "down"]
    edit_shard(ffn_only / "model.safetensors", _scale_attention)
    Checkpoint.open(ffn_only).input_thresholds()


def _scale_attention(tensors):
    tensors["model.layers.1.self_attn.v_proj.weight"] *= 2


def _scale_ffn(tensors):
    tensors["model.layers.1.mlp.up_proj.weight"] *= 2


def test_a_change_of_type_is_hashed_as_written(make_model, write_sparse, tmp_path):
    for projections in (("q",), ("down",)):
        out = tmp_path / projections[0]
        write_sparse(make_model(), out, projections, dtype="bf16")
        checkpoint = Checkpoint.open(out)
        assert checkpoint.dtype == "bf16"
        assert list(checkpoint.input_thresholds()) == list(projections)


def test_dense_and_converted_models_without_them(make_model, make_sparse):
    assert Checkpoint.open(make_model()).input_thresholds() == {}
    assert Checkpoint.open(make_sparse(gate_threshold=0.1)).input_thresholds() == {}


@pytest.mark.parametrize("change", [_scale_attention, _scale_ffn])
def test_other_weights_are_refused(sparse, change):
    name = "model.layers.1.mlp.up_proj.weight"
    edit_shard(shard_of(sparse, name), change)
    refused(sparse, "made for other weights", "convert again")


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.pop("layers.1.input_threshold.o"),
        lambda t: t.pop("layers.2.ffn.threshold"),
        lambda t: t.update({"layers.0.input_threshold.k": torch.zeros(48)}),
        lambda t: t.update({"layers.3.input_threshold.q": torch.zeros(48)}),
    ],
    ids=["missing", "missing gate", "another projection", "another layer"],
)
def test_missing_and_surplus_thresholds(sparse, change):
    edit_shard(sparse / "sparsity.safetensors", change)
    refused(sparse, "expected exactly 12 layer thresholds")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(47), "layers.1.input_threshold.o (layer 1) is not [48] in fp32"),
        (torch.zeros(48).double(), "is not [48] in fp32"),
        (-torch.ones(48), "layers.1.input_threshold.o (layer 1) has a negative or NaN threshold"),
        (torch.full((48,), torch.nan), "negative or NaN"),
    ],
    ids=["shape", "dtype", "negative", "nan"],
)
def test_bad_values(sparse, value, message):
    edit_shard(
        sparse / "sparsity.safetensors", lambda t: t.update({"layers.1.input_threshold.o": value})
    )
    refused(sparse, message)


def test_infinite_thresholds_switch_inputs_off(sparse):
    edit_shard(
        sparse / "sparsity.safetensors",
        lambda t: t.update({"layers.1.input_threshold.o": torch.full((48,), torch.inf)}),
    )
    assert torch.isinf(Checkpoint.open(sparse).input_thresholds()["o"][1]).all()


def test_a_missing_file(sparse):
    (sparse / "sparsity.safetensors").unlink()
    refused(sparse, "sparsity.safetensors is missing", "convert the parent again")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask": "topk"}, "mask"),
        ({"mask": "topk:0"}, "mask"),
        ({"mask": "topk:-3"}, "mask"),
        ({"mask": "topk:113"}, "keeps 113 of 112 neurons"),
        ({"input_thresholds": ["head"]}, "input_thresholds"),
        ({"input_thresholds": ["q", "q"]}, "named twice"),
        ({"input_thresholds": "q"}, "input_thresholds"),
        ({"shift": float("inf")}, "shift"),
        ({"shift": 0.5}, "shift and input_relu go with relu only"),
        ({"input_relu": "perhaps"}, "input_relu"),
    ],
    ids=str,
)
def test_malformed_records(sparse, changes, message):
    set_record(sparse, **changes)
    refused(sparse, message)


def test_records_written_before_these_fields_existed(make_sparse, tmp_path):
    folder = Path(shutil.copytree(make_sparse(gate_threshold=0.1), tmp_path / "old"))
    path = folder / "config.json"
    raw = json.loads(path.read_text("utf-8"))
    for name in ("mask", "input_thresholds", "shift", "input_relu"):
        del raw["sparseinfer"][name]
    path.write_text(json.dumps(raw), "utf-8")
    record = Checkpoint.open(folder).record
    assert record is not None
    assert (record.mask, record.top_k, record.input_thresholds) == ("gate", None, ())
    assert (record.shift, record.input_relu) == (0.0, False)
