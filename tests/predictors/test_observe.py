from __future__ import annotations

import pytest
import torch
import transformers

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.errors import ConfigError, PredictorError, UnsupportedError
from sparseinfer.predictors.observe import observe, pack_mask, unpack_mask
from sparseinfer.predictors.rules import gate_rules
from sparseinfer.predictors.sample import draw_windows, load_texts
from sparseinfer.tokenizer import load_tokenizer


@pytest.mark.parametrize("neurons", [1, 7, 8, 9, 112])
def test_masks_survive_packing(neurons):
    mask = torch.rand(5, neurons) < 0.5
    packed = pack_mask(mask)
    assert packed.shape == (5, -(-neurons // 8))
    assert torch.equal(unpack_mask(packed, neurons), mask)
    assert int(packed[0, 0]) & 1 == int(mask[0, 0])


def test_what_is_seen_is_what_transformers_computes(relu_model):
    checkpoint = Checkpoint.open(relu_model)
    windows = torch.randint(3, 250, (3, 20))
    model = transformers.AutoModelForCausalLM.from_pretrained(relu_model)
    inputs, gates = [], []

    def keep(_module, given, output):
        inputs.append(given[0])
        gates.append(output)

    for layer in model.model.layers:
        layer.mlp.gate_proj.register_forward_hook(keep)
    with torch.no_grad():
        for window in windows:
            model(window[None])
    seen: dict[int, list] = {}

    def sink_of(layer):
        return None if layer == 1 else seen.setdefault(layer, []).append

    done = []
    observe(checkpoint, gate_rules(checkpoint), windows, sink_of, done.append, dtype="fp32")
    assert done == [0, 1, 2]
    assert sorted(seen) == [0, 2]
    for layer, parts in seen.items():
        for number, rows in enumerate(parts):
            x, gate = inputs[3 * number + layer][0], gates[3 * number + layer][0]
            torch.testing.assert_close(rows.x.float(), x, rtol=2e-2, atol=2e-2)
            clear = gate.abs() > 1e-4
            mask = unpack_mask(rows.masks, 112)
            assert torch.equal(mask[clear], (gate > 0)[clear])


def test_masks_follow_the_thresholds_of_a_converted_model(make_sparse):
    checkpoint = Checkpoint.open(make_sparse(gate_threshold=0.2))
    rates = []

    def sink_of(layer):
        return lambda rows: rates.append(float(unpack_mask(rows.masks, 112).float().mean()))

    windows = torch.randint(3, 250, (2, 30))
    observe(checkpoint, gate_rules(checkpoint), windows, sink_of, lambda _: None, dtype="fp32")
    assert all(0.2 < rate < 0.8 for rate in rates)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"projections": ("gate", "up")}, "thresholds on the inputs of gate, up"),
        ({"projections": ("down",), "gate_threshold": 0.1}, "thresholds on the inputs of down"),
        ({"mask": "topk:5"}, "topk"),
        ({}, "dense"),
    ],
)
def test_models_without_a_gate_mask_are_refused(make_sparse, options, reason):
    with pytest.raises(UnsupportedError, match=reason):
        gate_rules(Checkpoint.open(make_sparse(**options)))


def test_models_with_a_gate_mask_are_not(make_sparse):
    for options in (
        {"gate_threshold": 0.1, "projections": ("q", "o")},
        {"hidden_act": "drelu"},
        {"hidden_act": "relu2", "gate_threshold": 0.1},
    ):
        checkpoint = Checkpoint.open(make_sparse(**options))
        assert len(gate_rules(checkpoint).thresholds) == 3


def test_windows_are_drawn_once_in_random_order(relu_model, prose_file):
    checkpoint, tokenizer = Checkpoint.open(relu_model), load_tokenizer(relu_model)
    text = load_texts(str(prose_file))

    def draw(**options):
        options = {"tokens": 2000, "context": 50, "seed": 0} | options
        return draw_windows(text, tokenizer, checkpoint.config, **options)

    sample = draw()
    assert sample.windows.shape == (40, 50)
    assert sample.provenance.tokens == 2000
    assert len({tuple(window.tolist()) for window in sample.windows}) == 40
    assert torch.equal(sample.windows, draw().windows)
    assert not torch.equal(sample.windows, draw(seed=1).windows)
    with pytest.raises(ConfigError, match="999 tokens are too few"):
        draw(tokens=999)
    with pytest.raises(ConfigError, match="context 999"):
        draw(context=999)


def test_several_texts_are_joined(tmp_path, relu_model):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(name * 30)
    text = load_texts([str(tmp_path / "a.txt"), str(tmp_path / "b.txt")])
    assert text.joined == "a" * 30 + "\n\n" + "b" * 30
    checkpoint = Checkpoint.open(relu_model)
    with pytest.raises(PredictorError, match="has 62 tokens"):
        draw_windows(
            text, load_tokenizer(relu_model), checkpoint.config, tokens=1000, context=None, seed=0
        )
