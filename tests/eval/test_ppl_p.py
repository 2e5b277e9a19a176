"""PPL-p%: curves by hand, masks in a transformers model, and the search on a model made for it."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.engine import load
from sparseinfer.errors import ConfigError
from sparseinfer.eval.ppl_p import (
    LayerCurve,
    check_p,
    layer_curve,
    measure_curves,
    ppl_p_sparsity,
)
from sparseinfer.eval.rules import rules_of
from sparseinfer.eval.windows import Window
from sparseinfer.layerwise import Rules

INNER = 112
PLAIN = Rules("silu", "id")


def test_a_curve_by_hand():
    # Two tokens, three neurons; the third never adds anything.
    h = torch.tensor([[3.0, -2, 0], [0, 1, 0]])
    down = torch.tensor([[1.0, 0, 5], [0, 2, 5]])
    curve = layer_curve(h, down)
    assert curve.norms.tolist() == [1, 2, pytest.approx(50**0.5)]
    # Scores: 3 and 4 of the first token, 2 of the second; outputs (3, -4) and (0, 2).
    assert [round(t, 4) for t in curve.thresholds] == [0, 2, 3, 4, 4]
    assert curve.thresholds[-1] > 4
    # Below 3: the second token's whole output. Below 4: also (3, 0) of (3, -4).
    assert curve.cett.tolist() == [0, 0, 0.5, pytest.approx((0.6 + 1) / 2), 1]


def test_thresholds_lie_between_the_points_of_the_curve():
    norms = torch.tensor([1.0, 2.0, 0.0])
    curve = LayerCurve(np.array([0.0, 2.0, 6.0]), np.array([0.0, 0.5, 1.0]), norms)
    assert curve.on_inputs(0.0).tolist() == [0, 0, math.inf]
    assert curve.on_inputs(0.25).tolist() == [1, 0.5, math.inf]
    assert curve.on_inputs(0.5).tolist() == [2, 1, math.inf]
    assert curve.on_inputs(0.75).tolist() == [4, 2, math.inf]


def test_neurons_that_never_fire_have_a_curve_too():
    curve = layer_curve(torch.zeros(4, 3), torch.ones(2, 3))
    assert curve.cett.tolist() == [0] * len(curve.cett)
    assert bool(torch.isfinite(curve.on_inputs(0.5)).all())


def test_curves_give_the_cett_they_say(dense):
    generator = torch.Generator().manual_seed(2)
    windows = torch.randint(3, 259, (3, 40), generator=generator)
    curves = measure_curves(Checkpoint.open(dense), PLAIN, windows, dtype="fp32")
    model = transformers.AutoModelForCausalLM.from_pretrained(dense).eval()
    inputs = [[] for _ in range(3)]
    for layer, block in enumerate(model.model.layers):
        block.mlp.down_proj.register_forward_pre_hook(
            lambda _m, args, layer=layer: inputs[layer].append(args[0][0])
        )
    with torch.no_grad():
        for window in windows:
            model(window[None])
    for layer, curve in enumerate(curves):
        h = torch.cat(inputs[layer])
        down = model.model.layers[layer].mlp.down_proj.weight.detach()
        assert np.all(np.diff(curve.thresholds) >= 0)
        assert (curve.cett[0], curve.cett[-1]) == (0, 1)
        for wanted in (0.05, 0.2, 0.6):
            limit = curve.on_inputs(wanted)
            found = []
            for token in h:
                dropped = sum(
                    token[i] * down[:, i] for i in range(INNER) if abs(token[i]) < limit[i]
                )
                found.append(float(torch.as_tensor(dropped).norm() / (down @ token).norm()))
            # Between two points of the curve a straight line stands for it.
            assert sum(found) / len(found) == pytest.approx(wanted, abs=0.03)


class ScriptedModel:
    """Each layer's threshold is its CETT; nll per token is 1 + cost * cett^2; the sparsity of layer
    i is half the CETT, and i + 1 tenths of the other neurons are 0 by themselves."""

    config = SimpleNamespace(num_layers=2, intermediate_size=10)

    def __init__(self, cost):
        self.cost = cost
        self.cett = None
        self.calls = []

    def set_thresholds(self, thresholds):
        assert [one.tolist() for one in thresholds] == [[0.0] * 10] * 2
        self.calls.append("thresholds")

    def set_top_k(self, k):
        assert k is None
        self.calls.append("top-k")

    def set_sketch(self, bits):
        assert bits is None
        self.calls.append("sketch")

    def set_input_thresholds(self, thresholds):
        assert set(thresholds) == {"down"}
        first, second = thresholds["down"]
        assert torch.equal(first, second)
        self.cett = float(first[0])

    def reset_sparsity(self):
        self.tokens = 0

    def sparsity(self, phase):
        assert phase == "prefill"
        used = (round(self.tokens * 10 * (1 - s)) for s in self.sparsities())
        return SimpleNamespace(tokens=self.tokens, inputs={"down": tuple(used)})

    def sparsities(self):
        return [1 - (1 - self.cett / 2) * (1 - share) for share in (0.1, 0.2)]

    def logit_chunks(self, ids, *, by):
        assert by == "prefill"
        self.tokens += len(ids)
        # Two tokens: the one that is always right has log-probability -(1 + cost * cett^2).
        nll = 1 + self.cost * self.cett**2
        other = math.log(math.expm1(nll)) if nll < 30 else nll
        yield torch.tensor([[0.0, other]]).expand(len(ids), 2)


CURVE = LayerCurve(np.array([0.0, 1.0]), np.array([0.0, 1.0]), torch.ones(10))
WINDOWS = [Window((0,) * 1001, 1000), Window((0,) * 501, 500)]


@pytest.mark.parametrize("p", [0.01, 0.05, 1.0])
def test_the_search_ends_just_within_the_limit(p):
    model = ScriptedModel(cost=0.9)
    calls = []
    found = ppl_p_sparsity(
        model, [CURVE, CURVE], WINDOWS, p, curve_tokens=77, progress=lambda *c: calls.append(c)
    )
    assert 1 + 0.9 * p < found.perplexity_ratio <= 1 + p
    assert found.perplexity_ratio == pytest.approx(math.exp(0.9 * found.cett**2), rel=1e-4)
    assert found.perplexity == pytest.approx(math.e, rel=1e-5)
    model.cett = found.cett
    assert found.layer_sparsity == pytest.approx(model.sparsities(), abs=1e-3)
    assert found.neuron_sparsity == pytest.approx(sum(found.layer_sparsity) / 2)
    assert (found.p, found.curve_tokens) == (p, 77)
    first, *rest = found.trace
    assert (first.cett, first.perplexity_ratio) == (0, 1)
    assert first.neuron_sparsity == pytest.approx(0.15)
    assert rest[0].cett == 0.5
    best = max(step.neuron_sparsity for step in found.trace if step.perplexity_ratio <= 1 + p)
    assert found.neuron_sparsity == best
    assert model.calls == ["thresholds", "top-k", "sketch"]
    done = [one[1] for one in calls]
    assert done == list(range(1, len(done) + 1))
    assert done[-1] == 2 * len(found.trace) <= calls[-1][2]


def test_a_model_that_needs_no_ffn_loses_them_all():
    found = ppl_p_sparsity(ScriptedModel(cost=0), [CURVE, CURVE], WINDOWS, 0.01, curve_tokens=1)
    assert found.cett > 0.999
    assert found.perplexity_ratio == 1
    assert len(found.trace) == 13


def test_a_model_that_needs_every_neuron_keeps_them():
    found = ppl_p_sparsity(ScriptedModel(cost=1e9), [CURVE, CURVE], WINDOWS, 0.01, curve_tokens=1)
    assert (found.cett, found.perplexity_ratio) == (0, 1)
    assert found.neuron_sparsity == pytest.approx(0.15)


@pytest.mark.parametrize("weights", ["fp32", "int8"])
def test_a_sketch_is_lifted_first(make_model, make_sparse, weights):
    sketched = load(make_sparse(gate_threshold=0.1, mask="sketch:4,64"), weights=weights, threads=1)
    assert sketched.sketch_bits == 4
    plain = load(make_model(), weights=weights, threads=1)
    windows = [Window(tuple(range(5, 60)), 54)]
    ids = torch.tensor([window.ids for window in windows])
    found = [
        ppl_p_sparsity(
            model,
            measure_curves(Checkpoint.open(model.path), rules_of(model), ids, dtype="fp32"),
            windows,
            0.5,
            curve_tokens=ids.numel(),
        )
        for model in (sketched, plain)
    ]
    assert found[0] == found[1]
    assert found[0].neuron_sparsity > 0.1


@pytest.mark.parametrize("p", [0.0, -0.01, 10.0, math.nan, math.inf])
def test_rises_out_of_range_are_refused(p):
    with pytest.raises(ConfigError, match="outside"):
        check_p(p)


def test_rises_in_range_are_taken():
    check_p(None)
    check_p(1e-4)
    check_p(1.0)
