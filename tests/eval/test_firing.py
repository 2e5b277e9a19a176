"""Firing statistics against loops over a whole transformers model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.convert import convert
from sparseinfer.engine import load
from sparseinfer.eval.firing import LayerCounts, deciles, measure_firing, relative_norm
from sparseinfer.eval.rules import rules_of
from sparseinfer.layerwise import FfnPass, Rules

from .plain_model import plain_model

TOKENS, INNER, HIDDEN = 24, 112, 48


@pytest.fixture(scope="module")
def windows():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, 259, (2, TOKENS // 2), generator=generator)


def _vectors(size, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.rand(size, generator=generator) for _ in range(3)]


RULES = {
    "none": Rules("silu", "id"),
    "thresholds": Rules("silu", "id", thresholds=_vectors(INNER, 0.4, 0)),
    "top-k": Rules("silu", "id", top_k=9),
    "thresholds and top-k": Rules("silu", "id", thresholds=_vectors(INNER, 0.6, 5), top_k=20),
    "relu": Rules("relu", "id"),
    "shifted": Rules("relu", "id", shift=0.25),
    "drelu": Rules("relu", "relu"),
    "stage 2": Rules("relu", "id", input_relu=True),
    "inputs": Rules(
        "silu",
        "id",
        inputs={
            **{part: _vectors(HIDDEN, 0.8, 1) for part in ("q", "k", "v", "o", "gate", "up")},
            "down": _vectors(INNER, 0.2, 2),
        },
    ),
    "sketch thresholds": Rules("silu", "id", thresholds=_vectors(INNER, 0.3, 6), sketch=4),
    "2-bit thresholds": Rules("silu", "id", thresholds=_vectors(INNER, 0.3, 7), sketch=2),
    "down": Rules("silu", "id", thresholds=_vectors(INNER, 0.2, 3),
                  inputs={"down": _vectors(INNER, 0.2, 4)}),
}  # fmt: skip


@torch.no_grad()
def expected(folder, rules, windows):
    """(dead, hot, active mean, CETT) of each layer, token by token."""
    seen = []
    model = plain_model(folder, rules, seen)
    for window in windows:
        model(window[None])
    result = []
    for layer in range(3):
        mlp = model.model.layers[layer].mlp
        passes = [(x, h, y) for index, x, h, y in seen if index == layer]
        x, h, y = (torch.cat(parts) for parts in zip(*passes, strict=True))
        # Random weights: a neuron that counts never has a u of exactly 0, unless psi makes it so.
        fires = h != 0
        if rules.psi == "relu":
            fires = mlp.gate_proj(x) > 0
        plain = replace(rules, thresholds=(), top_k=None, inputs={})
        whole_seen = []
        whole_model = plain_model(folder, plain, whole_seen)
        whole = torch.stack(
            [whole_model.model.layers[layer].mlp(row[None, None])[0, 0] for row in x]
        )
        lost = torch.tensor(
            [float((w - k).norm() / w.norm()) for w, k in zip(whole, y, strict=True)]
        )
        rate = fires.double().mean(0)
        result.append(
            (
                float((rate == 0).double().mean()),
                float((rate >= 0.5).double().mean()),
                float(fires.double().mean()),
                float(lost.mean()),
            )
        )
    return result


@pytest.mark.parametrize("name", RULES)
def test_statistics_are_those_of_loops_over_a_whole_model(dense, windows, name):
    rules = RULES[name]
    found = measure_firing(Checkpoint.open(dense), rules, windows, dtype="fp32")
    assert (found.tokens, found.context) == (TOKENS, TOKENS // 2)
    wanted = expected(dense, rules, windows)
    assert len(found.layers) == 3
    for one, (dead, hot, active, cett) in zip(found.layers, wanted, strict=True):
        # One neuron may fall to the other side of a threshold where sums are rounded otherwise.
        assert one.dead == pytest.approx(dead, abs=1.5 / INNER)
        assert one.hot == pytest.approx(hot, abs=1.5 / INNER)
        assert one.active_mean == pytest.approx(active, abs=1.5 / INNER / TOKENS)
        assert one.cett == pytest.approx(cett, abs=5e-3)
        assert len(one.rates) == INNER
        assert list(one.rates) == sorted(one.rates, reverse=True)
        assert sum(one.rates) / INNER == pytest.approx(one.active_mean)
        assert one.active_deciles[0] <= one.active_mean <= one.active_deciles[-1]
    if name == "none":
        assert [one.cett for one in found.layers] == [0, 0, 0]
        assert all(one.hot == 1 and one.active_std == 0 for one in found.layers)
    if name == "top-k":
        assert all(one.active_mean == pytest.approx(9 / INNER) for one in found.layers)
    if "thresholds" in name or name in ("top-k", "inputs", "down"):
        assert all(0.05 < one.cett < 1.5 for one in found.layers)


def test_the_layers_are_left_as_they_were(dense, windows):
    checkpoint = Checkpoint.open(dense)
    first = measure_firing(checkpoint, RULES["inputs"], windows, dtype="fp32")
    assert measure_firing(checkpoint, RULES["inputs"], windows, dtype="fp32") == first


def test_a_drelu_checkpoint_can_be_watched(dense, windows, tmp_path):
    convert(str(dense), "drelu", out=tmp_path / "drelu")
    rules = rules_of(load(tmp_path / "drelu", threads=1))
    assert (rules.phi, rules.psi) == ("relu", "relu")
    found = measure_firing(Checkpoint.open(tmp_path / "drelu"), rules, windows, dtype="fp32")
    assert found == measure_firing(Checkpoint.open(dense), RULES["drelu"], windows, dtype="fp32")


def test_rules_come_with_the_thresholds_of_now(sparse):
    model = load(sparse, threads=1)
    model.set_thresholds([torch.full((INNER,), 0.5)] * 3)
    rules = rules_of(model)
    assert (rules.phi, rules.psi, rules.top_k, rules.shift) == ("silu", "id", None, 0.0)
    assert all(bool((one == 0.5).all()) for one in rules.thresholds)
    assert rules.activation_alone() == Rules("silu", "id")


def test_counts_by_hand():
    active = torch.tensor([[1, 0, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 1]]).bool()
    kept = torch.tensor([[3.0, 0], [1, 0], [1, 0], [0, 0]])
    dropped = torch.tensor([[0, 4.0], [0, 0], [-1, 1], [0, 0]])
    counts = LayerCounts(4)
    for rows in (slice(0, 3), slice(3, 4)):
        lost = dropped[rows]
        counts.add(
            FfnPass(active[rows], kept[rows], kept[rows], lambda lost=lost: lost, kept[rows])
        )
    found = counts.summary()
    assert (found.dead, found.hot) == (0.25, 0.25)
    assert found.rates == (1, 0.25, 0.25, 0)
    assert found.active_mean == pytest.approx((2 + 1 + 1 + 2) / 16)
    assert found.active_std == pytest.approx(0.125)
    assert found.active_deciles == (0.25,) * 5 + (0.5,) * 6
    # 4 / 5, nothing dropped, norm (-1, 1) / norm (0, 1), and a token without any output
    assert found.cett == pytest.approx((0.8 + 0 + 2**0.5 + 0) / 4)


def test_many_neurons_come_in_128_groups():
    active = torch.arange(300) % 3 == 0
    counts = LayerCounts(300)
    nothing = torch.zeros(1, 2)
    counts.add(FfnPass(active[None], torch.zeros(1, 300), nothing, lambda: nothing, nothing))
    rates = counts.summary().rates
    assert len(rates) == 128
    assert rates[0] == 1
    assert rates[-1] == 0
    assert sum(0 < rate < 1 for rate in rates) <= 1


def test_deciles_are_values_of_the_sample():
    assert deciles(torch.tensor([5.0])) == (5.0,) * 11
    assert deciles(torch.arange(101).flip(0)) == tuple(float(10 * i) for i in range(11))
    assert deciles(torch.tensor([0.0, torch.inf]))[-1] == torch.inf


def test_relative_norm_of_nothing_is_0():
    found = relative_norm(torch.tensor([[0.0, 0], [3, 4]]), torch.tensor([[0.0, 0], [0, 10]]))
    assert found.tolist() == [0, 0.5]
