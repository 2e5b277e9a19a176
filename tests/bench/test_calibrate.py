"""Thresholds found in sequence give the wanted sparsity in the masked model."""

from __future__ import annotations

import pytest
import torch

import sparseinfer
from sparseinfer.bench.calibrate import (
    check_calibratable,
    input_thresholds_in_sequence,
    thresholds_in_sequence,
)
from sparseinfer.bench.calibrate_neurons import chess_in_sequence, sketch_in_sequence
from sparseinfer.errors import CalibrationError, UnsupportedError


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.9])
def test_every_layer_of_the_sparse_model_misses_as_often_as_wanted(make_checkpoint, ids, sparsity):
    checkpoint = make_checkpoint()
    found = thresholds_in_sequence(checkpoint, ids, sparsity)
    assert len(found) == checkpoint.config.num_layers
    model = sparseinfer.load(checkpoint.path, weights="fp32", threads=1)
    model.set_thresholds([torch.full((128,), value) for value in found])
    model.logits(ids)
    realised = model.sparsity("prefill").neuron_sparsity(model.config)
    # Of 24 x 128 activations, those nearest to the quantile may round to its other side.
    assert realised == pytest.approx([sparsity] * 3, abs=6 / (24 * 128))


def test_later_layers_are_calibrated_on_what_masked_layers_give(make_checkpoint, ids):
    checkpoint = make_checkpoint()
    first = thresholds_in_sequence(checkpoint, ids, 0.9)
    model = sparseinfer.load(checkpoint.path, weights="fp32", threads=1)
    # With the layers before it dense, the last layer misses its threshold at another rate.
    dense_before = [torch.zeros(128), torch.zeros(128), torch.full((128,), first[2])]
    model.set_thresholds(dense_before)
    model.logits(ids)
    realised = model.sparsity("prefill").neuron_sparsity(model.config)
    assert abs(realised[2] - 0.9) > 5e-3


@pytest.mark.parametrize("sparsity", [0.25, 0.7])
def test_every_projection_of_the_sparse_model_drops_as_many_inputs_as_wanted(
    make_checkpoint, ids, sparsity
):
    checkpoint = make_checkpoint()
    config = checkpoint.config
    found = input_thresholds_in_sequence(checkpoint, ids, sparsity)
    model = sparseinfer.load(checkpoint.path, weights="fp32", threads=1)
    model.set_input_thresholds(
        {
            name: [torch.full((config.inputs_of(name),), value) for value in layers]
            for name, layers in found.items()
        }
    )
    model.logits(ids)
    density = model.sparsity("prefill").input_density(config)
    assert list(density) == ["q", "k", "v", "o", "gate", "up", "down"]
    for name, layers in density.items():
        # Inputs that rounding tips over their threshold change those of the layers after.
        assert layers == pytest.approx([1 - sparsity] * 3, abs=0.03), name


@pytest.mark.parametrize("sparsity", [0.3, 0.7])
def test_thresholds_of_neurons_by_what_up_is_on_average(make_checkpoint, ids, sparsity):
    checkpoint = make_checkpoint()
    found = chess_in_sequence(checkpoint, ids, sparsity)
    assert all(one.shape == (128,) and one.std() > 0 for one in found)
    model = sparseinfer.load(checkpoint.path, weights="fp32", threads=1)
    model.set_thresholds(found)
    model.logits(ids)
    realised = model.sparsity("prefill").neuron_sparsity(model.config)
    assert realised == pytest.approx([sparsity] * 3, abs=0.01)


@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_thresholds_on_what_a_sketch_estimates(make_checkpoint, ids, weights):
    checkpoint = make_checkpoint()
    found = sketch_in_sequence(checkpoint, ids, 0.5, weights)
    model = sparseinfer.load(checkpoint.path, weights=weights, threads=1, prefill="fp32")
    model.set_sketch(4)
    model.set_thresholds(found)
    model.logits(ids)
    counts = model.sparsity("prefill")
    assert counts.neuron_sparsity(model.config) == pytest.approx([0.5] * 3, abs=0.03)
    assert counts.gate_rows is not None


def test_activations_that_overflow_are_named(make_checkpoint, ids, monkeypatch):
    from sparseinfer.bench import calibrate

    monkeypatch.setattr(calibrate, "_submodule", lambda name: f"mlp.{name}_proj")
    monkeypatch.setattr(calibrate, "PROJECTIONS", ("gate",))
    checkpoint = make_checkpoint()
    read = type(checkpoint).read

    def infinite(self, names):
        for name, tensor in read(self, names):
            yield name, tensor * float("inf") if "1.post_attention_layernorm" in name else tensor

    monkeypatch.setattr(type(checkpoint), "read", infinite)
    with pytest.raises(CalibrationError, match="layer 1, gate: activations overflow"):
        input_thresholds_in_sequence(checkpoint, ids, 0.5)


def test_refuses_a_mask_that_no_gate_threshold_makes(make_checkpoint, tmp_path):
    from sparseinfer.checkpoint import Checkpoint
    from sparseinfer.convert import convert

    convert(str(make_checkpoint().path), "drelu", out=tmp_path / "drelu")
    with pytest.raises(UnsupportedError, match="--sparsity own"):
        check_calibratable(Checkpoint.open(tmp_path / "drelu"))
