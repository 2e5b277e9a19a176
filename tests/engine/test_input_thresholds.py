"""Thresholds on inputs, top-k, shifted ReLU and ReLUs after norms: prompts, decoding, plain torch
and transformers with hooks compute the same function, on converted models and set at run time."""

from __future__ import annotations

import json
import math
import sys

import pytest
import torch
import transformers
from safetensors.torch import load_file

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.engine import Model, load
from sparseinfer.engine import runner as runners
from sparseinfer.engine.reference import ReferenceRunner
from sparseinfer.errors import ConfigError
from sparseinfer.kernels.input_mask import PROJECTIONS
from sparseinfer.packed import open_model
from sparseinfer.packed.pipeline import pack_model

from .oracle import ROUNDED, TIGHT, hf_logits, hf_model, random_ids, relative_error

IDS = random_ids(40)
ATTENTION = ("q", "k", "v", "o")

CASES = {
    "teal": {"projections": PROJECTIONS},
    "biases": {"projections": PROJECTIONS,
               "model": {"attention_bias": True, "mlp_bias": True}},
    "chess with attention": {"projections": ("q", "o"), "gate_threshold": 0.1},
    "o": {"projections": ("o",)},
    "gate": {"projections": ("gate",), "gate_threshold": 0.1},
    "up": {"projections": ("up",), "gate_threshold": 0.1},
    "down": {"projections": ("down",)},
    "top-k": {"mask": "topk:30"},
    "top-k and teal": {"projections": PROJECTIONS, "mask": "topk:30"},
    "shift": {"hidden_act": "sparseinfer_relu", "shift": 0.3},
    "shift with biases": {"hidden_act": "sparseinfer_relu", "shift": 0.3,
                          "model": {"mlp_bias": True}},
    "stage 2": {"hidden_act": "sparseinfer_relu", "input_relu": True,
                "projections": ("q", "k", "v", "gate", "up")},
    "stage 2, dense": {"hidden_act": "sparseinfer_relu", "input_relu": True},
}  # fmt: skip
NEAR_TIES = 3e-3
"""A value as near to its threshold as rounding may fall on either side."""


def plain_relu(folder):
    """transformers' model of a converted folder without its rules; ReLU where it has one."""
    raw = json.loads((folder / "config.json").read_text())
    if raw["hidden_act"] != "sparseinfer_relu":
        return hf_model(folder)
    raw = {name: value for name, value in raw.items() if name not in ("model_type", "sparseinfer")}
    config = transformers.LlamaConfig(**{**raw, "hidden_act": "relu"})
    return transformers.LlamaForCausalLM.from_pretrained(
        folder, config=config, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def hooked(folder):
    """transformers' model of a converted folder, computing what its record says."""
    model, record = plain_relu(folder), Checkpoint.open(folder).record
    stored = folder / "sparsity.safetensors"
    stored = load_file(stored) if stored.is_file() else {}

    def mask(threshold):
        def hook(_module, inputs):
            x = inputs[0]
            return (torch.where(x.abs() >= threshold, x, 0.0),)

        return hook

    def act(plain, threshold):
        def call(g):
            a = plain(g - record.shift)
            a = torch.where(a.abs() >= threshold, a, 0.0)
            if record.top_k is None:
                return a
            least = a.abs().topk(record.top_k).values[..., -1:]
            return torch.where(a.abs() >= least, a, 0.0)

        return call

    for index, layer in enumerate(model.model.layers):
        for name in record.input_thresholds:
            owner = layer.self_attn if name in ATTENTION else layer.mlp
            threshold = stored[f"layers.{index}.input_threshold.{name}"]
            getattr(owner, f"{name}_proj").register_forward_pre_hook(mask(threshold))
        threshold = stored.get(f"layers.{index}.ffn.threshold", torch.zeros(()))
        object.__setattr__(layer.mlp, "act_fn", act(layer.mlp.act_fn, threshold))
        if record.input_relu:
            for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                norm.register_forward_hook(lambda _m, _i, y: y.relu())
    return model


@pytest.mark.parametrize("case", CASES)
def test_prompts_decoding_and_transformers_agree(make_sparse, case):
    folder = make_sparse(**CASES[case])
    model = load(folder, threads=1)
    with torch.no_grad():
        expected = hf_logits(hooked(folder), IDS)
        dense = hf_logits(plain_relu(folder), IDS)
    assert relative_error(dense, expected) > 1e-2, "the rule matters"
    for by in ("prefill", "decode"):
        found = model.logits(IDS, by=by)
        # One value on the other side of its threshold changes few positions by little.
        assert relative_error(found, expected) < NEAR_TIES, by
        near = [relative_error(a, b) < TIGHT for a, b in zip(found, expected, strict=True)]
        assert sum(near) > 30, by
    prefill, decode = model.sparsity("prefill"), model.sparsity("decode")
    assert tuple(prefill.inputs) == tuple(decode.inputs)
    assert set(decode.inputs) == set(CASES[case].get("projections", ()))
    for one, other in zip(_numbers(prefill), _numbers(decode), strict=True):
        assert abs(one - other) <= 2


def _numbers(counts):
    return [*counts.up_rows, *counts.down_rows, *(n for one in counts.inputs.values() for n in one)]


@pytest.mark.parametrize("case", ["teal", "chess with attention", "top-k and teal", "stage 2"])
@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
def test_formats_agree_with_plain_torch(make_sparse, monkeypatch, case, weights):
    folder = make_sparse(**CASES[case])
    # With activations rounded to bf16 too many values fall on the other side of their threshold.
    model = load(folder, weights=weights, threads=1, prefill="fp32")
    prefill, decode = model.logits(IDS), model.logits(IDS, by="decode")
    monkeypatch.setitem(sys.modules, "sparseinfer.kernels._native", None)
    plain = load(folder, weights=weights, threads=1)
    assert isinstance(plain._runner, ReferenceRunner)
    expected = plain.logits(IDS)
    assert relative_error(prefill, expected) < 2e-2
    most = {"bf16": 2e-2, "int8": 5e-2, "int4": 0.15}[weights]
    assert relative_error(decode, expected) < most
    for one, other in zip(
        _numbers(model.sparsity("decode")), _numbers(plain.sparsity()), strict=True
    ):
        assert abs(one - other) <= max(5, 0.02 * other)


@pytest.mark.parametrize("case", ["teal", "biases", "chess with attention", "up", "top-k and teal"])
@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8", "int4"])
def test_packed_and_unpacked_give_the_same_bits(make_sparse, tmp_path, case, weights):
    folder = make_sparse(**CASES[case])
    model = load(folder, weights=weights, threads=1)
    pack_model(str(folder), weights, out=tmp_path / "packed")
    packed = load(tmp_path / "packed", threads=1)
    assert packed.input_thresholds.keys() == model.input_thresholds.keys()
    for by in ("prefill", "decode"):
        assert torch.equal(packed.logits(IDS, by=by), model.logits(IDS, by=by))
    assert packed.sparsity() == model.sparsity()


def test_thresholds_set_on_a_dense_model_are_those_of_a_converted_one(make_model, make_sparse):
    converted = load(make_sparse(PROJECTIONS), threads=1)
    dense = load(make_model(), threads=1)
    before = dense.logits(IDS, by="decode")
    assert dense.input_thresholds == {}
    dense.set_input_thresholds(converted.input_thresholds)
    assert dense.sparsity().tokens == 0, "counts start anew"
    assert list(dense.input_thresholds) == list(PROJECTIONS)
    for by in ("prefill", "decode"):
        assert relative_error(dense.logits(IDS, by=by), converted.logits(IDS, by=by)) < NEAR_TIES
        counts, expected = dense.sparsity(by), converted.sparsity(by)
        for one, other in zip(_numbers(counts), _numbers(expected), strict=True):
            assert abs(one - other) <= 2
    dense.set_input_thresholds({})
    assert dense.sparsity().inputs == {}
    assert torch.equal(dense.logits(IDS, by="decode"), before)


def test_thresholds_of_a_converted_model_can_be_taken_off(make_model, make_sparse):
    """Matrices stay stored by input: the dense function, added up in another order."""
    model = load(make_sparse(PROJECTIONS), threads=1)
    model.set_input_thresholds({})
    dense = load(make_model(), threads=1)
    for by in ("prefill", "decode"):
        assert relative_error(model.logits(IDS, by=by), dense.logits(IDS, by=by)) < TIGHT
    assert model.sparsity().inputs == {}
    assert model.sparsity() == dense.sparsity()


def test_a_threshold_on_down_is_one_on_the_neurons_outputs(make_model):
    """Of theta / norm(W_down[:, i]), as in CETT."""
    folder = make_model()
    plain = hf_model(folder)
    model = load(folder, threads=1)
    norms = [layer.mlp.down_proj.weight.norm(dim=0) for layer in plain.model.layers]
    model.set_input_thresholds({"down": [0.1 / norm.detach() for norm in norms]})
    for layer, norm in zip(plain.model.layers, norms, strict=True):
        layer.mlp.down_proj.register_forward_pre_hook(
            lambda _m, inputs, norm=norm: (
                torch.where(inputs[0].abs() * norm >= 0.1, inputs[0], 0.0),
            )
        )
    expected = hf_logits(plain, IDS)
    for by in ("prefill", "decode"):
        assert relative_error(model.logits(IDS, by=by), expected) < NEAR_TIES
    counts = model.sparsity("decode")
    assert counts.inputs == {"down": counts.down_rows}
    assert counts.up_rows == (40 * 112,) * 3
    assert all(0.2 < rows / (40 * 112) < 0.8 for rows in counts.down_rows)


def test_top_k_at_run_time(make_model):
    model = load(make_model(), threads=1)
    dense = model.logits(IDS, by="decode")
    assert model.top_k is None
    model.set_top_k(30)
    assert model.top_k == 30
    for by in ("prefill", "decode"):
        model.logits(IDS, by=by)
        assert model.sparsity(by).up_rows == (40 * 30,) * 3
    model.set_top_k(112)
    assert relative_error(model.logits(IDS, by="decode"), dense) < TIGHT
    model.set_top_k(None)
    assert torch.equal(model.logits(IDS, by="decode"), dense)


def test_thresholds_on_neurons_still_change_after_the_rules_did(make_model):
    model = load(make_model(), threads=1)
    model.set_top_k(50)
    model.set_input_thresholds({"o": [torch.zeros(48)] * 3})
    model.set_thresholds([torch.full((112,), torch.inf)] * 3)
    model.logits(IDS, by="decode")
    model.logits(IDS)
    assert model.sparsity().up_rows == (0, 0, 0)
    assert model.top_k == 50


def test_sequences_go_on_where_rules_change(make_model):
    """The cache stays; the next tokens are computed with the new rules."""
    model = load(make_model(), threads=1)
    generation = model.generate(IDS[:9], max_tokens=6, stop_ids=())
    first = [next(generation) for _ in range(3)]
    model.set_input_thresholds({"down": [torch.full((112,), math.inf)] * 3})
    rest = list(generation)
    assert len(first) == len(rest) == 3
    assert model.sparsity("decode").inputs == {"down": (0, 0, 0)}


def test_a_batch_continues_each_prompt_as_alone(make_sparse):
    model = load(make_sparse(PROJECTIONS, mask="topk:30"), threads=1)
    prompts = [random_ids(count, seed=count) for count in (1, 5, 11, 30)]
    alone = [list(model.generate(ids, max_tokens=6)) for ids in prompts]
    assert model.generate_batch(prompts, max_tokens=6) == alone


@pytest.mark.parametrize("case", ["teal", "top-k and teal"])
def test_without_native_kernels(make_sparse, monkeypatch, case):
    folder = make_sparse(**CASES[case])
    expected = hf_logits(hooked(folder), IDS)
    monkeypatch.setitem(sys.modules, "sparseinfer.kernels._native", None)
    runners._say_slow.cache_clear()
    model = load(folder, threads=1)
    for by in ("prefill", "decode"):
        assert relative_error(model.logits(IDS, by=by), expected) < NEAR_TIES
    model.set_input_thresholds({})
    model.set_top_k(None)
    dense = hf_logits(hf_model(folder), IDS)
    assert relative_error(model.logits(IDS), dense) < ROUNDED


GOOD = [torch.zeros(48)] * 3


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"head": GOOD}, "'head' is not one of q, k, v, o, gate, up, down"),
        ({"q": GOOD[:2]}, "2 thresholds of q were given for 3 layers"),
        ({"q": GOOD, "down": GOOD}, r"the down threshold of layer 0 is \[48\], not \[112\]"),
        ({"k": [*GOOD[:2], -torch.ones(48)]}, "the k threshold of layer 2 has a negative or NaN"),
        ({"v": [torch.full((48,), torch.nan)] * 3}, "the v threshold of layer 0 has a negative"),
    ],
    ids=["name", "layers", "shape", "negative", "nan"],
)
def test_bad_thresholds_are_refused_and_nothing_changes(make_model, bad, message):
    model = load(make_model(), threads=1)
    model.set_input_thresholds({"o": [torch.full((48,), 0.5)] * 3})
    before = model.logits(IDS, by="decode")
    with pytest.raises(ConfigError, match=message):
        model.set_input_thresholds(bad)
    assert list(model.input_thresholds) == ["o"]
    assert torch.equal(model.logits(IDS, by="decode"), before)


@pytest.mark.parametrize("k", [0, -1, 113, 1.5, True, "3"])
def test_bad_k_is_refused(make_model, k):
    model = load(make_model(), threads=1)
    with pytest.raises(ConfigError, match="not a whole number from 1 to 112"):
        model.set_top_k(k)
    assert model.top_k is None


def test_thresholds_given_are_copied(make_model):
    model = load(make_model(), threads=1)
    mine = [torch.full((48,), 0.5) for _ in range(3)]
    model.set_input_thresholds({"q": mine})
    before = model.logits(IDS, by="decode")
    mine[0].fill_(math.inf)
    assert torch.equal(model.logits(IDS, by="decode"), before)


def test_weights_stored_by_input_take_thresholds_later(make_model, make_sparse):
    """To the bit what a converted model computes, whose weights are stored so from the start."""
    converted = load(make_sparse(PROJECTIONS), weights="int8", threads=1)
    model = Model(open_model(make_model()), weights="int8", threads=1, by_input=PROJECTIONS)
    assert not model.input_thresholds
    dense = model.logits(IDS, by="decode")
    model.set_input_thresholds(converted.input_thresholds)
    assert torch.equal(model.logits(IDS, by="decode"), converted.logits(IDS, by="decode"))
    model.set_input_thresholds({})
    assert torch.equal(model.logits(IDS, by="decode"), dense)


def test_layouts_that_cannot_be(make_model, tmp_path):
    source = open_model(make_model())
    with pytest.raises(ConfigError, match="'head' is not one of q, k, v"):
        Model(source, threads=1, by_input=("head",))
    pack_model(str(make_model()), weights="int8", out=tmp_path / "packed")
    with pytest.raises(ConfigError, match="its layout is what it was packed with"):
        Model(open_model(tmp_path / "packed"), threads=1, by_input=("q",))
