"""Firing rates of neurons: counted as transformers' own layers see them, and kept on disk."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from sparseinfer.engine import load
from sparseinfer.engine.firing import cached_rates, firing_rates, rates_key
from sparseinfer.engine.rope import Rope
from sparseinfer.errors import SourceError
from sparseinfer.kernels.sign import SignBits
from sparseinfer.packed import Weights, load_model, open_model

from .conftest import PARENTS
from .oracle import ffn_inputs, hf_model, masked_model, random_ids, thresholds_of

WINDOWS = torch.tensor([random_ids(40, seed=seed) for seed in (1, 2, 3)])


def loaded(folder, weights="fp32"):
    return load_model(open_model(folder), weights)


def rates_of(model, weights: Weights | None = None, windows=WINDOWS):
    rope = Rope(model.rope.inv_freq, model.rope.scale)
    return firing_rates(weights or model.weights, windows, model.config, rope)


def brute_force(hf, thresholds) -> list[torch.Tensor]:
    """How many tokens of all windows keep each neuron, from the inputs of transformers' FFNs."""
    counts = 0
    for window in WINDOWS.tolist():
        kept = []
        for layer, x, threshold in zip(
            hf.model.layers, ffn_inputs(hf, window), thresholds, strict=True
        ):
            a = layer.mlp.act_fn(layer.mlp.gate_proj(x)).abs()
            kept.append(((a >= threshold) & (a != 0)).sum(0))
        counts = counts + torch.stack(kept)
    return list(counts)


def same_counts(rates, counts) -> None:
    for rate, count in zip(rates, counts, strict=True):
        # Where rounding decides, one token more or less.
        assert int((rate * WINDOWS.numel() - count).abs().round().sum()) <= 1


def test_rates_are_those_of_a_relu_model_with_a_window(make_model):
    folder = make_model("mistral", hidden_act="relu", **PARENTS["mistral"])
    rates = rates_of(loaded(folder))
    assert all(0.3 < float(rate.mean()) < 0.7 for rate in rates)
    assert len({round(float(one), 4) for rate in rates for one in rate}) > 20
    same_counts(rates, brute_force(hf_model(folder), [0.0] * len(rates)))


def test_rates_are_those_of_thresholds(converted):
    folder = converted("cats")
    rates = rates_of(loaded(folder))
    assert 0.35 < float(torch.stack(rates).mean()) < 0.65
    same_counts(rates, brute_force(masked_model(folder), thresholds_of(folder)))


@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_a_sketch_decides_where_there_is_one(make_model, weights):
    model = load(make_model(), weights=weights, threads=1, prefill="fp32")
    model.set_sketch(4)
    model.set_thresholds([torch.full((112,), 0.05)] * 3)
    for window in WINDOWS.tolist():
        model.logits(window)
    want = torch.tensor(model.sparsity("prefill").up_rows)
    given = loaded(make_model(), weights)
    rates = rates_of(given, model._weights)
    found = torch.stack(rates).sum(1) * WINDOWS.numel()
    assert float((found - want).abs().max()) <= 0.005 * float(want.max())
    assert float(want.max()) < 0.95 * 112 * WINDOWS.numel()


def test_inputs_that_do_not_count_are_left_out(make_sparse):
    folder = make_sparse(("q", "o"), gate_threshold=0.2)
    model = load(folder, weights="fp32", threads=1)
    for window in WINDOWS.tolist():
        model.logits(window)
    want = torch.tensor(model.sparsity("prefill").up_rows)
    found = torch.stack(rates_of(loaded(folder))).sum(1) * WINDOWS.numel()
    assert float((found - want).abs().max()) <= 2


def test_a_predictor_does_not_hide_what_fires(make_model):
    model = loaded(make_model(hidden_act="relu"))
    nothing = [
        SignBits.of(layer.ffn.gate, 0.0) for layer in model.weights.layers
    ]  # lets few through
    weights = model.weights.with_predictor([replace(one, most=-1) for one in nothing])
    assert all(map(torch.equal, rates_of(model, weights), rates_of(model)))


def test_windows_are_texts_of_their_own(make_model):
    model = loaded(make_model(hidden_act="relu"))
    apart = [rates_of(model, windows=one[None]) for one in WINDOWS]
    mean = torch.stack([torch.stack(one) for one in apart]).mean(0)
    torch.testing.assert_close(torch.stack(rates_of(model)), mean)


def test_keys_name_all_that_rates_depend_on(make_model):
    model = load(make_model(), weights="fp32", threads=1)
    weights = model._weights
    key = rates_key(weights, "0", WINDOWS)
    assert rates_key(weights, "0", WINDOWS.clone()) == key
    others = {
        rates_key(weights, "1", WINDOWS),
        rates_key(weights, "0", WINDOWS + 1),
        rates_key(weights, "0", WINDOWS.flatten()[None]),
        rates_key(weights.with_sketch(4), "0", WINDOWS),
        rates_key(weights.with_top_k(3), "0", WINDOWS),
        rates_key(weights.with_input_thresholds({"q": [torch.ones(48)] * 3}), "0", WINDOWS),
        rates_key(replace(weights, input_relu=True), "0", WINDOWS),
        rates_key(loaded(make_model(), "bf16").weights, "0", WINDOWS),
    }
    model.set_thresholds([torch.full((112,), 0.1)] * 3)
    others.add(rates_key(weights, "0", WINDOWS))
    assert len(others) == 9
    assert key not in others


class Measured:
    """Counts how often rates are measured."""

    def __init__(self, *rates: torch.Tensor) -> None:
        self.rates = list(rates)
        self.times = 0

    def __call__(self) -> list[torch.Tensor]:
        self.times += 1
        return self.rates


@pytest.fixture
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("SPARSEINFER_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_rates_are_measured_once(home):
    measured = Measured(torch.rand(5), torch.rand(7))
    for _ in range(2):
        assert all(map(torch.equal, cached_rates("a" * 64, measured), measured.rates))
    assert measured.times == 1
    cached_rates("b" * 64, measured)
    assert measured.times == 2
    assert sorted(path.name for path in (home / "firing").iterdir()) == ["a" * 32, "b" * 32]


@pytest.mark.parametrize("damage", ["cut", "gone", "foreign", "impossible"])
def test_damaged_rates_are_measured_again(home, damage):
    measured = Measured(torch.rand(50))
    cached_rates("a" * 64, measured)
    file = home / "firing" / ("a" * 32) / "rates.safetensors"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-60])
    elif damage == "gone":
        file.unlink()
    else:
        name, value = ("other", 0.5) if damage == "foreign" else ("layers.0", torch.nan)
        save_file({name: torch.full((50,), value)}, file)
    assert torch.equal(cached_rates("a" * 64, measured)[0], measured.rates[0])
    assert measured.times == 2


def test_a_failed_measurement_leaves_nothing(home):
    def fail() -> list[torch.Tensor]:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        cached_rates("a" * 64, fail)
    assert list((home / "firing").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named(home):
    home.write_text("a file")
    with pytest.raises(SourceError, match="SPARSEINFER_HOME"):
        cached_rates("a" * 64, Measured(torch.rand(3)))
