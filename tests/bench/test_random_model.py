"""Random checkpoints: of the named shape, the same everywhere, written once."""

from __future__ import annotations

import pytest
import torch

from sparseinfer.bench import shapes
from sparseinfer.bench.random_model import DEVIATION, random_model, write_random_checkpoint
from sparseinfer.checkpoint import Checkpoint
from sparseinfer.errors import ConfigError

TINY = {
    **shapes.SHAPES["llama-1.1b"],
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 500,
}


@pytest.fixture
def tiny_shape(monkeypatch):
    monkeypatch.setitem(shapes.SHAPES, "tiny", TINY)


@pytest.mark.usefixtures("cache", "tiny_shape")
def test_is_a_checkpoint_of_the_shape_with_fewer_layers():
    folder = random_model("tiny", 2)
    checkpoint = Checkpoint.open(folder)
    assert (checkpoint.config.num_layers, checkpoint.config.hidden_size) == (2, 64)
    assert checkpoint.dtype == "bf16"
    tensors = dict(checkpoint.read())
    assert bool((tensors["model.norm.weight"] == 1).all())
    gate = tensors["model.layers.1.mlp.gate_proj.weight"].float()
    assert float(gate.std()) == pytest.approx(DEVIATION, rel=0.05)
    assert float(gate.mean()) == pytest.approx(0, abs=DEVIATION / 20)
    assert not torch.equal(gate, tensors["model.layers.0.mlp.gate_proj.weight"].float())
    made = (folder / "config.json").stat().st_mtime_ns
    assert random_model("tiny", 2) == folder
    assert (folder / "config.json").stat().st_mtime_ns == made
    assert random_model("tiny", 3) != folder


def test_shards_change_nothing_but_files(tmp_path, monkeypatch):
    written = {}
    for name, size in (("one", 1 << 29), ("many", 40_000)):
        monkeypatch.setattr("sparseinfer.bench.random_model._SHARD_BYTES", size)
        (tmp_path / name).mkdir()
        write_random_checkpoint(TINY, tmp_path / name)
        written[name] = dict(Checkpoint.open(tmp_path / name).read())
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 5
    assert written["one"].keys() == written["many"].keys()
    assert all(
        torch.equal(tensor, written["many"][name]) for name, tensor in written["one"].items()
    )


@pytest.mark.parametrize("name", shapes.SHAPES)
def test_every_named_shape_is_a_valid_config(name):
    from sparseinfer import arch

    config = arch.model_config(shapes.named_shape(name), name)
    assert config.num_heads * config.head_dim == config.hidden_size


@pytest.mark.parametrize("layers", [0, -1, 33])
def test_refuses_impossible_layers(layers):
    with pytest.raises(ConfigError, match="outside"):
        shapes.named_shape("llama2-7b", layers)


def test_refuses_an_unknown_shape_by_naming_the_known():
    with pytest.raises(ConfigError, match="llama2-7b"):
        shapes.named_shape("llama-9b")
