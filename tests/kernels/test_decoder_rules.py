"""The native decode step with thresholds on inputs, matrices stored by input, top-k and ReLUs after
the norms: against fp64 in plain torch, and the same bits whatever the threads and the batch."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from decoder_oracle import Toy, feed, near_nothing, text, tolerance, toy
from matrices import poison, quantised, relative

from sparseinfer.kernels.decoder.cpu import MAX_ROWS, DecoderLayer, TokenRow
from sparseinfer.kernels.input_mask import PROJECTIONS
from sparseinfer.kernels.projection import Projection
from sparseinfer.kernels.threads import CpuPool

FP32 = torch.float32
ATTENTION = ("q", "k", "v", "o")
BY_INPUT = PROJECTIONS[:-1]

RULES = {
    "attention": {"sparse": ATTENTION},
    "attention by input": {"sparse": ATTENTION, "by_input": ATTENTION},
    "q and o by input": {"sparse": ("q", "o"), "by_input": ("q", "o")},
    "o by input": {"sparse": ("o",), "by_input": ("o",)},
    "gate": {"sparse": ("gate",)},
    "up": {"sparse": ("up",)},
    "down": {"sparse": ("down",)},
    "gate by input": {"sparse": ("gate",), "by_input": ("gate",)},
    "up by input": {"sparse": ("up",), "by_input": ("up",)},
    "all": {"sparse": PROJECTIONS},
    "all by input": {"sparse": PROJECTIONS, "by_input": BY_INPUT},
    "by input without thresholds": {"by_input": BY_INPUT},
    "top-k": {"top_k": 20},
    "top-k, all by input": {"sparse": PROJECTIONS, "by_input": BY_INPUT, "top_k": 20},
    "relu after norms": {"input_relu": True},
    "relu after norms, by input": {
        "input_relu": True, "sparse": BY_INPUT, "by_input": BY_INPUT, "phi": "relu"},
}  # fmt: skip

FEW = ("all", "all by input", "q and o by input", "up by input", "top-k", "top-k, all by input")
"""Rules of which the bits are compared."""

SHAPES = {
    "small": {},
    "odd": {"hidden": 51, "intermediate": 75, "head_dim": 10, "window": 7, "bias": True},
    "ranges": {"hidden": 260, "intermediate": 330, "heads": 5, "kv_heads": 1, "head_dim": 40},
}


def made_of(name: str, format: str, **changes) -> Toy:
    """A model whose thresholds about half the inputs of `text(24)` reach."""
    model = toy(format, **{**RULES[name], **changes})
    model.answer(text(24), near_nothing())
    return model


def tolerated(model: Toy, format: str) -> float:
    # Which neurons are the k largest may be decided by how inputs are held.
    if model.layers[0].ffn.top_k is not None and quantised(format):
        return 0.1
    return 3 * tolerance(format, FP32, len(model.layers))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", RULES)
def test_logits_and_counts(isa, pool, format, name, shape):
    model = made_of(name, format, **SHAPES[shape])
    ids = text(24)
    expected, wanted = model.answer(ids)
    for chunk in (1, 5):
        found = feed(model.decoder(pool, isa), model.tables(24), model.sequence(), ids, chunk)
        logits, counts = found
        assert relative(logits, expected) < tolerated(model, format)
        assert counts.shape == wanted.shape
        slack = 2 if quantised(format) else 0
        assert int((counts - wanted).abs().max()) <= slack
    for layer in wanted:
        for name_, used in zip(PROJECTIONS, layer[:, 3:].T, strict=False):
            if name_ not in model_sparse(model):
                assert not used.any()


def model_sparse(model: Toy) -> set[str]:
    layer = model.layers[0]
    found = {
        name
        for name, one in (layer.apart._asdict() if layer.apart else {}).items()
        if one.threshold is not None
    }
    ffn = (("gate", layer.ffn.gate_input), ("up", layer.ffn.up_input),
           ("down", layer.ffn.down_input))  # fmt: skip
    return found | {name for name, one in ffn if one is not None}


def test_rules_change_the_logits(pool):
    """Otherwise the comparisons above would show nothing."""
    ids = text(24)

    def logits(model):
        return feed(model.decoder(pool), model.tables(24), model.sequence(), ids)[0]

    plain = logits(toy())
    for name in RULES:
        if name == "by input without thresholds":
            assert relative(logits(made_of(name, "fp32")), plain) < 1e-5
        else:
            assert relative(logits(made_of(name, "fp32")), plain) > 1e-2, name


def test_about_half_of_the_inputs_count(pool):
    model = made_of("all by input", "fp32")
    _, counts = feed(model.decoder(pool), model.tables(24), model.sequence(), text(24))
    sizes = {"o": 24, "down": 90}
    for part, used in zip(PROJECTIONS, counts[:, :, 3:].float().mean((0, 1)), strict=True):
        assert 0.35 < used / sizes.get(part, 40) < 0.65, part
    assert torch.equal(counts[:, :, 9], counts[:, :, 1])


@pytest.mark.parametrize("k", [1, 7, 89, 90])
def test_top_k_keeps_that_many(isa, pool, format, k):
    model = toy(format, top_k=k)
    ids = text(10)
    logits, counts = feed(model.decoder(pool, isa), model.tables(10), model.sequence(), ids)
    assert (counts == k).all()
    plain = feed(toy(format).decoder(pool, isa), model.tables(10), model.sequence(), ids)[0]
    assert (relative(logits, plain) < 1e-5) == (k == 90)


def test_top_k_counts_neurons_that_reach_their_threshold(isa, pool):
    """Where fewer do, those stay; ReLU leaves about half of 90."""
    model = toy(phi="relu", top_k=30)
    for layer in model.layers:
        layer.ffn.threshold[20:] = torch.inf
    ids = text(10)
    _, wanted = model.answer(ids)
    _, counts = feed(model.decoder(pool, isa), model.tables(10), model.sequence(), ids)
    assert torch.equal(counts.long(), wanted)
    assert 0 < counts.max() <= 20


@pytest.mark.parametrize("name", FEW)
def test_threads_and_chunks_of_one_text(isa, format, name):
    model = made_of(name, format, hidden=72, intermediate=200, bias=True, window=11)
    ids, tables = text(24), model.tables(24)
    expected = feed(model.decoder(CpuPool(1), isa), tables, model.sequence(), ids)
    for threads, tokens in ((1, 24), (2, 24), (3, 5)):
        decoder = model.decoder(CpuPool(threads), isa)
        for chunk in (1, 2, 5, 16):
            logits, counts = feed(decoder, tables, model.sequence(), ids[:tokens], chunk)
            assert torch.equal(logits, expected[0][:tokens]), (threads, chunk)
            assert torch.equal(counts, expected[1][:, :tokens]), (threads, chunk)


@pytest.mark.parametrize("name", FEW)
def test_every_batch_gives_each_text_what_it_gets_alone(isa, format, name):
    model = made_of(name, format)
    tables = model.tables(4)
    texts = [text(3, seed=b) for b in range(MAX_ROWS)]
    alone = model.decoder(CpuPool(1), isa)
    expected = [feed(alone, tables, model.sequence(), ids) for ids in texts]
    decoder = model.decoder(CpuPool(2), isa)
    for batch in range(1, MAX_ROWS + 1):
        sequences = [model.sequence() for _ in range(batch)]
        for position in range(3):
            rows = [
                TokenRow(ids[position], position, one.keys, one.values)
                for ids, one in zip(texts, sequences, strict=False)
            ]
            logits, counts = decoder(rows, *tables)
            for b in range(batch):
                assert torch.equal(logits[b], expected[b][0][position]), (batch, b)
                assert torch.equal(counts[:, b], expected[b][1][:, position]), (batch, b)


def _poisoned(projection: Projection, off: torch.Tensor) -> Projection:
    return dataclasses.replace(projection, weight=poison(projection.weight, off))


def _every_third(size: int) -> torch.Tensor:
    return torch.arange(size) % 3 == 0


def _switched_off(layer: DecoderLayer, spoil: bool) -> DecoderLayer:
    """Every third input never counts; its weights are NaN."""
    ffn = layer.ffn
    for vector in (*(one.threshold for one in layer.apart), ffn.gate_input, ffn.up_input,
                   ffn.down_input):  # fmt: skip
        vector.fill_(0.05)
        vector[_every_third(len(vector))] = torch.inf
    if not spoil:
        return layer
    parts = [_poisoned(one, _every_third(one.inputs)) for one in layer.apart]
    ffn = dataclasses.replace(
        ffn,
        gate=poison(ffn.gate, _every_third(ffn.hidden)),
        up=poison(ffn.up, _every_third(ffn.hidden)),
        down=poison(ffn.down, _every_third(ffn.intermediate)),
    )
    return layer._replace(apart=type(layer.apart)(*parts), ffn=ffn)


def test_weights_of_inputs_that_do_not_count_are_not_read(isa, pool, format):
    ids = text(8)

    def run(spoil: bool):
        model = toy(format, sparse=PROJECTIONS, by_input=BY_INPUT)
        model.layers = [_switched_off(layer, spoil) for layer in model.layers]
        return feed(model.decoder(pool, isa), model.tables(8), model.sequence(), ids, chunk=3)

    clean, spoilt = run(False), run(True)
    assert torch.isfinite(clean[0]).all()
    assert torch.equal(spoilt[0], clean[0])
    assert torch.equal(spoilt[1], clean[1])
    model = toy(format, sparse=PROJECTIONS, by_input=BY_INPUT)
    for layer in model.layers:
        layer.apart.o.weight.data.copy_(poison(layer.apart.o.weight, _every_third(24)).data)
    assert torch.isnan(
        feed(model.decoder(pool, isa), model.tables(8), model.sequence(), ids)[0]
    ).any()


def test_rows_of_neurons_outside_the_top_k_are_not_read(isa, pool, format):
    """A bias makes the first neurons the largest ones."""
    ids = text(8)

    def run(spoil: bool):
        model = toy(format, top_k=30, bias=True)
        for index, layer in enumerate(model.layers):
            layer.ffn.gate_bias[:30] += 100
            if spoil:
                off = torch.arange(90) >= 30
                ffn = dataclasses.replace(
                    layer.ffn, up=poison(layer.ffn.up, off), down=poison(layer.ffn.down, off)
                )
                model.layers[index] = layer._replace(ffn=ffn)
        return feed(model.decoder(pool, isa), model.tables(8), model.sequence(), ids, chunk=3)[0]

    clean = run(False)
    assert torch.isfinite(clean).all()
    assert torch.equal(run(True), clean)


@pytest.mark.parametrize("by_input", [(), BY_INPUT], ids=["by output", "by input"])
def test_no_input_counts(isa, pool, format, by_input):
    """The hidden state then only moves by the biases."""
    model = toy(format, sparse=PROJECTIONS, by_input=by_input, bias=True)
    for layer in model.layers:
        for one in layer.apart:
            one.threshold.fill_(torch.inf)
        for vector in (layer.ffn.gate_input, layer.ffn.up_input, layer.ffn.down_input):
            vector.fill_(torch.inf)
    ids = text(6)
    expected, _ = model.answer(ids)
    logits, counts = feed(model.decoder(pool, isa), model.tables(6), model.sequence(), ids)
    assert relative(logits, expected) < tolerance(format, FP32, 2)
    assert not counts[:, :, 1:].any()
    assert (counts[:, :, 0] == 90).all(), "gate biases alone make neurons fire"


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["all", "all by input", "top-k"])
def test_bad_values_reach_their_own_sequence_only(isa, pool, format, name, value):
    model = made_of(name, format, head_format="fp32")
    model.embedding.data[5, 3] = value
    decoder, tables = model.decoder(pool, isa), model.tables(3)
    sequences = [model.sequence() for _ in range(4)]
    rows = [TokenRow(5 if b == 2 else 8, 0, s.keys, s.values) for b, s in enumerate(sequences)]
    logits, _ = decoder(rows, *tables)
    assert not torch.isfinite(logits[2]).any()
    for b in (0, 1, 3):
        assert torch.equal(logits[b], logits[0])
        assert torch.isfinite(logits[b]).all()


def test_a_layer_without_attention_is_refused(pool):
    model = toy()
    model.layers[1] = model.layers[1]._replace(o=None)
    with pytest.raises(ValueError, match="qkv and o, or q, k, v and o apart"):
        model.decoder(pool)


def test_projections_of_another_shape_are_refused(pool):
    model = toy(sparse=ATTENTION)
    first = model.layers[0]
    model.layers[0] = first._replace(apart=first.apart._replace(k=first.apart.q))
    with pytest.raises(ValueError, match="does not fit the model's shape"):
        model.decoder(pool)
