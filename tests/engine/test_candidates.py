"""Sketches and predictors of a model in memory: set, refused, counted, and the same in prompts,
decoding, batches and plain torch."""

from __future__ import annotations

import sys

import pytest
import torch

from sparseinfer.engine import Model, load
from sparseinfer.engine.reference import ReferenceRunner
from sparseinfer.errors import ConfigError
from sparseinfer.kernels.lowrank import LowRank
from sparseinfer.kernels.matrix import Matrix
from sparseinfer.kernels.quantize import quantize
from sparseinfer.kernels.sign import SignBits
from sparseinfer.sparsity import CandidateReads, sparsities

from .oracle import TIGHT, random_ids, relative_error

IDS = random_ids(40)
THRESHOLD = 0.1
SKETCHES = [("fp32", 2), ("fp32", 3), ("fp32", 4), ("bf16", 4), ("int8", 4)]
KINDS = ("sketch", "lowrank", "sign")


def lowrank(bias: float, format: str = "fp32", layers: int = 3, rank: int = 8) -> list[LowRank]:
    random = torch.Generator().manual_seed(0)

    def factor(rows: int, columns: int) -> Matrix:
        return quantize(torch.randn(rows, columns, generator=random), format)

    return [
        LowRank(factor(rank, 48), factor(112, rank), torch.full((112,), bias))
        for _ in range(layers)
    ]


def sign(model: Model, alpha: float) -> list[SignBits]:
    return [SignBits.of(layer.ffn.gate, alpha) for layer in model._weights.layers]


def with_thresholds(folder, weights="fp32", **options) -> Model:
    model = load(folder, weights=weights, threads=1, **options)
    model.set_thresholds([torch.full((112,), THRESHOLD)] * 3)
    return model


def use(model: Model, kind: str, format: str = "fp32") -> Model:
    """Something that lets a part of the neurons through."""
    if kind == "sketch":
        model.set_sketch(4)
    elif kind == "lowrank":
        model.set_predictors(lowrank(1.0, format))
    else:
        model.set_predictors(sign(model, 1.0))
    return model


def numbers(counts) -> list[int]:
    return [*counts.up_rows, *counts.down_rows, *counts.gate_rows]


CASES = [("sketch", *one) for one in SKETCHES] + [
    ("lowrank", "fp32", 0), ("lowrank", "int8", 0), ("sign", "fp32", 0), ("sign", "int4", 0),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "weights", "bits"), CASES)
def test_prompts_and_decoding_agree_with_plain_torch(make_model, monkeypatch, kind, weights, bits):
    def made() -> Model:
        # With activations rounded to bf16 more values fall on the other side of their threshold.
        found = with_thresholds(make_model(), weights, prefill="fp32")
        if bits:
            found.set_sketch(bits)
        else:
            use(found, kind, "bf16" if weights == "int8" else "fp32")
        return found

    model = made()
    outputs = {by: model.logits(IDS, by=by) for by in ("prefill", "decode")}
    monkeypatch.setitem(sys.modules, "sparseinfer.kernels._native", None)
    plain = made()
    assert isinstance(plain._runner, ReferenceRunner)
    expected = plain.logits(IDS)
    wanted = plain.sparsity()
    assert 0 < sum(wanted.gate_rows) < 40 * 3 * 112
    for by, found in outputs.items():
        # Native kernels round inputs of quantised weights; one neuron more or less is little.
        most = {"int4": 0.1, "int8": 2e-2}.get(weights, 1e-2)
        assert relative_error(found, expected) < most, by
        counts = model.sparsity(by)
        assert counts.reads == wanted.reads
        for one, other in zip(numbers(counts), numbers(wanted), strict=True):
            assert abs(one - other) <= max(5, 0.02 * other), by


@pytest.mark.parametrize(("weights", "bits"), SKETCHES)
def test_a_sketch_set_later_is_that_of_a_converted_model(make_model, make_sparse, weights, bits):
    folder = make_sparse(mask=f"sketch:{bits},64", gate_threshold=THRESHOLD)
    converted = load(folder, weights=weights, threads=1)
    assert converted.sketch_bits == bits
    model = load(make_model(), weights=weights, threads=1)
    model.set_sketch(bits)
    model.set_thresholds(converted.thresholds)
    for by in ("prefill", "decode"):
        assert torch.equal(model.logits(IDS, by=by), converted.logits(IDS, by=by))
    assert model.sparsity() == converted.sparsity()


@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8"])
def test_a_sketch_that_lets_all_through_changes_nothing(make_model, weights):
    model = load(make_model(), weights=weights, threads=1)
    before = {by: model.logits(IDS, by=by) for by in ("prefill", "decode")}
    model.set_sketch(4)
    # In decoding, planes and whole int8 rows round their inputs differently.
    most = 1e-4 if weights == "int8" else TIGHT
    for by, expected in before.items():
        assert relative_error(model.logits(IDS, by=by), expected) < most, by
    assert model.sparsity("decode").gate_rows == (40 * 112,) * 3


def test_a_sketch_beside_weights_can_be_taken_off(make_model):
    model = with_thresholds(make_model())
    before = model.logits(IDS, by="decode")
    model.set_sketch(4)
    assert model.sketch_bits == 4
    assert model.sparsity().tokens == 0, "counts start anew"
    assert not torch.equal(model.logits(IDS, by="decode"), before)
    model.set_sketch(3)
    assert model.sketch_bits == 3
    model.set_sketch(None)
    assert model.sketch_bits is None
    assert torch.equal(model.logits(IDS, by="decode"), before)
    assert model.sparsity().gate_rows is None


def test_planes_are_put_together_again(make_model):
    model = with_thresholds(make_model(), weights="int8")
    before = model.logits(IDS, by="decode")
    model.set_sketch(4)
    sketched = model.logits(IDS, by="decode")
    assert not torch.equal(sketched, before)
    with pytest.raises(ConfigError, match="not by 3"):
        model.set_sketch(3)
    assert torch.equal(model.logits(IDS, by="decode"), sketched)
    model.set_sketch(None)
    assert model.sketch_bits is None
    assert torch.equal(model.logits(IDS, by="decode"), before)


@pytest.mark.parametrize(("weights", "bits", "message"), [
    ("int4", 4, "sketch 4: a sketch reads as much as int4 weights do"),
    ("int8", 3, "sketch 3: int8 weights are sketched by 4 of their own bits, not by 3"),
    ("fp32", 5, "one of 2, 3, 4 bits, not 5"),
    ("fp32", 4.0, "one of 2, 3, 4 bits, not 4.0"),
    ("fp32", "4", "one of 2, 3, 4 bits, not '4'"),
])  # fmt: skip
def test_bits_that_cannot_be_are_refused(make_model, weights, bits, message):
    model = load(make_model(), weights=weights, threads=1)
    before = model.logits(IDS, by="decode")
    with pytest.raises(ConfigError, match=message) as refused:
        model.set_sketch(bits)
    assert "\n" not in str(refused.value)
    assert model.sketch_bits is None
    assert torch.equal(model.logits(IDS, by="decode"), before)


@pytest.mark.parametrize("format", ["fp32", "bf16", "int8"])
def test_a_predictor_that_lets_all_through_changes_no_token(make_model, format):
    model = with_thresholds(make_model())
    before = model.logits(IDS, by="decode")
    greedy = list(model.generate(IDS, max_tokens=12, stop_ids=()))
    gates = model.sparsity("decode")
    for everything in (lowrank(torch.inf, format), sign(model, torch.inf)):
        model.set_predictors(everything)
        assert model.predictors == everything
        assert torch.equal(model.logits(IDS, by="decode"), before)
        assert list(model.generate(IDS, max_tokens=12, stop_ids=())) == greedy
        counts = model.sparsity("decode")
        assert counts.up_rows == gates.up_rows
        assert counts.gate_rows == (counts.tokens * 112,) * 3
    model.set_predictors(None)
    assert model.predictors is None
    assert torch.equal(model.logits(IDS, by="decode"), before)


def test_a_predictor_that_lets_nothing_through(make_model):
    model = with_thresholds(make_model())
    model.set_predictors(lowrank(-torch.inf))
    for by in ("prefill", "decode"):
        model.logits(IDS, by=by)
        assert numbers(model.sparsity(by)) == [0] * 9
    found = sparsities(model.config, model.formats, model.sparsity())
    chooser = 8 * 48 * 4 + 112 * 8 * 4 + 112 * 4
    assert found.ffn_bytes == pytest.approx(1 - chooser / (3 * 112 * 48 * 4))


@pytest.mark.parametrize(("make", "message"), [
    (lambda model: lowrank(0.0, layers=2), "2 predictors were given for 3 layers"),
    (lambda model: lowrank(0.0, layers=4), "4 predictors were given for 3 layers"),
    (lambda model: [SignBits.of(quantize(torch.randn(112, 40), "fp32"), 1.0)] * 3,
     r"predictors: the predictor is for \[I, H\] = \[112, 40\], not \[112, 48\]"),
])  # fmt: skip
def test_predictors_that_do_not_fit_are_refused(make_model, make, message):
    model = with_thresholds(make_model())
    before = model.logits(IDS, by="decode")
    with pytest.raises(ConfigError, match=message):
        model.set_predictors(make(model))
    assert model.predictors is None
    assert torch.equal(model.logits(IDS, by="decode"), before)


def test_rules_that_exclude_each_other_are_refused(make_model):
    thresholds = {"down": [torch.full((112,), 0.1)] * 3}
    for kind in KINDS:
        model = use(with_thresholds(make_model()), kind)
        with pytest.raises(ConfigError, match="top_k 5: candidates do not go with top_k"):
            model.set_top_k(5)
        with pytest.raises(ConfigError, match="thresholds on inputs: candidates do not go"):
            model.set_input_thresholds(thresholds)
        model.set_input_thresholds({"o": [torch.full((48,), 0.1)] * 3})
        assert model.top_k is None
        assert list(model.input_thresholds) == ["o"]
    sketched = use(with_thresholds(make_model()), "sketch")
    with pytest.raises(ConfigError, match="goes with no predictor"):
        sketched.set_predictors(lowrank(0.0))
    for change in (lambda m: m.set_top_k(5), lambda m: m.set_input_thresholds(thresholds)):
        model = with_thresholds(make_model())
        change(model)
        with pytest.raises(ConfigError, match="candidates do not go"):
            model.set_sketch(4)
        assert model.sketch_bits is None


@pytest.mark.parametrize("weights", ["fp32", "int8"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_gives_the_tokens_of_single_runs(make_model, kind, weights):
    model = with_thresholds(make_model(), weights)
    if kind == "sign" and weights == "int8":
        kind = "lowrank"
    use(model, kind, "int8")
    prompts = [random_ids(length, seed=length) for length in (3, 20, 1, 9, 31)]
    options = {"max_tokens": 12, "stop_ids": ()}
    expected = [list(model.generate(prompt, **options)) for prompt in prompts]
    single = model.sparsity("decode")
    model.reset_sparsity()
    assert model.generate_batch(prompts, **options) == expected
    assert model.sparsity("decode") == single


@pytest.mark.parametrize(("weights", "bits"), SKETCHES)
def test_what_a_sketch_reads_is_what_is_announced(make_model, weights, bits):
    model = load(make_model(), weights=weights, threads=1)
    model.set_sketch(bits)
    expected = CandidateReads.of_sketch(model.config, model.formats, bits)
    assert model.sparsity().reads == expected


def test_thresholds_are_not_changed_under_a_predictor(make_model):
    model = load(make_model(), weights="fp32")
    others = [torch.full((112,), 0.2)] * 3
    model.set_predictors(lowrank(1.0))
    with pytest.raises(ConfigError, match="made for the thresholds"):
        model.set_thresholds(others)
    assert float(model.thresholds[0].max()) == 0
    model.set_predictors(None)
    model.set_thresholds(others)
    assert torch.equal(model.thresholds[0], others[0])
