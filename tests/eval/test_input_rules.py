"""Evaluation of models with thresholds on inputs, top-k, shifted ReLU and ReLUs after norms."""

from __future__ import annotations

import pytest
import torch

from sparseinfer.engine import load
from sparseinfer.eval import evaluate
from sparseinfer.eval.rules import rules_of

CASES = {
    "all inputs": {"projections": ("q", "k", "v", "o", "gate", "up", "down")},
    "attention": {"projections": ("q", "o"), "gate_threshold": 0.2},
    "down": {"projections": ("down",), "gate_threshold": 0.1},
    "top-k": {"mask": "topk:30"},
    "shifted": {"hidden_act": "sparseinfer_relu", "shift": 0.3},
    "stage 2": {"hidden_act": "sparseinfer_relu", "input_relu": True},
}


@pytest.mark.parametrize("case", CASES)
def test_single_layers_do_what_the_engine_does(make_sparse, short_text, case):
    folder = make_sparse(**CASES[case])
    found = evaluate(str(folder), text=short_text, tokens=256, firing_tokens=256, threads=1)
    rules = rules_of(load(folder, threads=1))
    assert set(rules.inputs) == set(CASES[case].get("projections", ()))
    assert rules.top_k == (30 if case == "top-k" else None)
    assert set(found.prefill.input_density) == set(rules.inputs)
    for layer, one in enumerate(found.firing.layers):
        realised = 1 - found.layer_sparsity[layer]
        if "down" in rules.inputs:
            realised = found.prefill.input_density["down"][layer]
        assert one.active_mean == pytest.approx(realised, abs=2e-3)
        assert (one.cett > 0.01) == (case not in ("shifted", "stage 2"))
    if case == "top-k":
        assert all(layer.active_deciles == (30 / 112,) * 11 for layer in found.firing.layers)
    assert set(found.decode.input_density) == set(rules.inputs)
    assert found.input_density == found.prefill.input_density
    named = {"neurons"} if CASES[case].get("gate_threshold") else set()
    assert set(found.threshold_deciles) == named | set(rules.inputs)


def test_the_sparsity_at_a_rise_of_perplexity(dense, short_text):
    found = evaluate(str(dense), text=short_text, ppl_p=0.05, threads=1).ppl_p
    # A random model may get better without some neurons, but the search never ends above the rise.
    assert found.perplexity_ratio <= 1.05
    assert found.curve_tokens == 5 * 128
    best = max(step.neuron_sparsity for step in found.trace if step.perplexity_ratio <= 1.05)
    assert found.neuron_sparsity == best > 0.02
    plain = evaluate(str(dense), text=short_text, threads=1)
    assert found.perplexity == pytest.approx(plain.perplexity)
    assert plain.ppl_p is None


def test_a_models_own_thresholds_are_lifted_for_it(dense, sparse, short_text):
    of_dense = evaluate(str(dense), text=short_text, ppl_p=0.05, threads=1)
    of_sparse = evaluate(str(sparse), text=short_text, ppl_p=0.05, threads=1)
    assert of_sparse.ppl_p == of_dense.ppl_p
    assert of_sparse.perplexity != of_dense.perplexity
    assert len(of_sparse.threshold_deciles["neurons"]) == 3


def test_zeros_of_a_relu_count(make_sparse, short_text):
    folder = make_sparse(hidden_act="relu")
    found = evaluate(str(folder), text=short_text, ppl_p=0.05, threads=1)
    own = sum(found.layer_sparsity) / 3
    assert found.ppl_p.trace[0].neuron_sparsity == pytest.approx(own, abs=1e-6)
    assert found.ppl_p.neuron_sparsity >= own > 0.3


def test_thresholds_that_change_later_are_seen(dense):
    model = load(dense, threads=1)
    model.set_input_thresholds({"down": [torch.full((112,), 0.25)] * 3})
    model.set_top_k(7)
    rules = rules_of(model)
    assert rules.top_k == 7
    assert all(bool((one == 0.25).all()) for one in rules.inputs["down"])
