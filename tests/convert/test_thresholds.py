"""Thresholds against a second computation: whole model, plain hooks, numpy's sort."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.convert.calibrate import sample_windows
from sparseinfer.sources import load_text
from sparseinfer.tokenizer import load_tokenizer

from .conftest import CALIBRATED, TOKENS, files_of

PHI = {"cats": "silu", "chess": "silu", "chess-l2": "silu", "fatrelu": "relu"}


def activations(parent, windows, phi):
    """|a| and u of every layer [tokens, I], from transformers alone."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        parent, dtype=torch.float32, hidden_act=phi, attn_implementation="eager"
    ).eval()
    gate = [[] for _ in model.model.layers]
    up = [[] for _ in model.model.layers]
    for index, layer in enumerate(model.model.layers):
        layer.mlp.act_fn.register_forward_hook(lambda *a, at=gate[index]: at.append(a[2]))
        layer.mlp.up_proj.register_forward_hook(lambda *a, at=up[index]: at.append(a[2]))
    with torch.no_grad():
        for window in windows:
            model(window[None])
    return [
        tuple(torch.cat(parts, dim=1)[0].double().numpy() for parts in both)
        for both in zip(gate, up, strict=True)
    ]


def windows_of(parent, prose_file, config, seed=0):
    text, tokenizer = load_text(str(prose_file)), load_tokenizer(parent)
    return sample_windows(text, tokenizer, config, tokens=TOKENS, seed=seed).windows


@pytest.mark.parametrize("sparsity", [0.3, 0.9])
@pytest.mark.parametrize(
    ("family", "dtype", "config"),
    [
        ("llama", "float32", {}),
        ("llama", "bfloat16", {"mlp_bias": True, "attention_bias": True}),
        ("mistral", "float32", {"sliding_window": 24, "head_dim": 16}),
    ],
    ids=["llama", "bf16 with biases", "mistral with a window"],
)
@pytest.mark.parametrize("method", [*CALIBRATED, "fatrelu"])
def test_thresholds_are_the_quantile_of_the_published_score(
    make_model, convert, prose_file, method, family, dtype, config, sparsity
):
    parent = make_model(family, dtype=dtype, **config)
    act = method.partition("-")[0]
    done = convert(parent, act, sparsity=sparsity, **CALIBRATED.get(method, {}))
    checkpoint = Checkpoint.open(done.out)
    found = checkpoint.thresholds()
    windows = windows_of(parent, prose_file, checkpoint.config)
    assert windows.numel() == TOKENS == done.record.calibration.tokens
    for layer, (a, u) in enumerate(activations(parent, windows, PHI[method])):
        a = np.abs(a)
        weight = {
            "cats": np.ones(a.shape[1]),
            "fatrelu": np.ones(a.shape[1]),
            "chess": np.abs(u).mean(axis=0),
            "chess-l2": np.sqrt(np.square(u).mean(axis=0)),
        }[method]
        scores = np.sort((a * weight).ravel())
        theta = scores[int(sparsity * scores.size)]
        np.testing.assert_allclose(found[layer].numpy(), theta / weight, rtol=1e-4, atol=1e-7)
        skipped = np.mean((a < found[layer].numpy()) | (a == 0))
        expected = max(sparsity, np.mean(a == 0))  # ReLU alone may skip more than asked
        assert abs(skipped - expected) < 1e-4
        assert abs(done.record.calibration.layer_sparsity[layer] - expected) < 1e-4


@pytest.mark.parametrize("method", CALIBRATED)
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.99, 0.999999])
def test_target_is_reached_to_one_neuron(make_model, convert, method, sparsity):
    parent = make_model()
    done = convert(parent, method.partition("-")[0], sparsity=sparsity, **CALIBRATED[method])
    for reached in done.record.calibration.layer_sparsity:
        assert sparsity - 1 / (TOKENS * 112) <= reached <= sparsity
    assert done.expected.neuron == pytest.approx(sparsity, abs=1e-5)
    assert done.expected.ffn_bytes == pytest.approx(2 * sparsity / 3, abs=1e-5)


def test_target_zero_skips_nothing(make_model, convert, prose_file):
    parent = make_model()
    found = Checkpoint.open(convert(parent, "cats", sparsity=0.0).out)
    windows = windows_of(parent, prose_file, found.config)
    pairs = zip(activations(parent, windows, "silu"), found.thresholds(), strict=True)
    for (a, _), threshold in pairs:
        assert np.abs(a).min() >= float(threshold.max()) - 1e-6


def test_cats_has_one_threshold_per_layer_and_chess_one_per_channel(make_model, convert):
    parent = make_model()
    cats = Checkpoint.open(convert(parent, "cats", sparsity=0.5).out).thresholds()
    chess = Checkpoint.open(convert(parent, "chess", sparsity=0.5).out).thresholds()
    assert all(len(set(layer.tolist())) == 1 for layer in cats)
    assert all(len(set(layer.tolist())) == 112 for layer in chess)
    assert len({layer[0].item() for layer in cats}) == 3


def test_constant_threshold_of_fatrelu(make_model, convert):
    default = convert(make_model(), "fatrelu")
    chosen = convert(make_model(), "fatrelu", threshold=0.25, out=default.out, force=True)
    assert default.record.threshold == 0.01
    assert chosen.record.threshold == 0.25
    for layer in Checkpoint.open(chosen.out).thresholds():
        assert torch.equal(layer, torch.full((112,), 0.25))


@pytest.mark.parametrize("method", CALIBRATED)
def test_same_seed_gives_the_same_bits_and_another_seed_others(
    make_model, convert, tmp_path, method
):
    parent = make_model()
    options = {"sparsity": 0.5, **CALIBRATED[method]}
    made = [
        files_of(
            convert(parent, method.partition("-")[0], seed=seed, out=tmp_path / str(n) / "x",
                    **options).out
        )
        for n, seed in enumerate((3, 3, 4))
    ]  # fmt: skip
    assert made[0] == made[1]
    assert made[0]["sparsity.safetensors"] != made[2]["sparsity.safetensors"]


def test_result_does_not_depend_on_sharding(make_model, convert, tmp_path):
    made = [
        files_of(
            convert(make_model(shard_size=size), "chess", sparsity=0.5, out=tmp_path / str(n)).out
        )["sparsity.safetensors"]
        for n, size in enumerate((None, "40KB"))
    ]
    assert made[0] == made[1]


def test_windows_do_not_repeat(make_model, prose_file):
    parent = make_model()
    config = Checkpoint.open(parent).config
    text, tokenizer = load_text(str(prose_file)), load_tokenizer(parent)
    everything = sample_windows(text, tokenizer, config, tokens=10**9, seed=0)
    ids = torch.tensor(tokenizer.encode(text.joined))
    assert torch.equal(everything.windows.flatten(), ids[: everything.tokens])
    assert everything.tokens > len(ids) - 128
