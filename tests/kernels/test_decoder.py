"""The native decode step against fp64 in plain torch."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from decoder_oracle import feed, text, tolerance, toy
from matrices import quantised, relative

from sparseinfer.kernels.decoder.cpu import CpuDecoder, TokenRow
from sparseinfer.kernels.matrix import Matrix

FP32, BF16 = torch.float32, torch.bfloat16

SHAPES = {
    "gqa": {},
    "one-head": {"heads": 1, "kv_heads": 1, "head_dim": 2, "hidden": 3, "intermediate": 5},
    "mha": {"kv_heads": 4, "bias": True},
    "mqa": {"kv_heads": 1, "tied": True},
    "head-2": {"head_dim": 2, "window": 1},
    "head-20": {"head_dim": 20, "hidden": 96, "window": 7, "bias": True},
    "head-64": {"heads": 9, "kv_heads": 3, "head_dim": 64, "hidden": 200, "intermediate": 300},
    "head-80": {"heads": 2, "kv_heads": 2, "head_dim": 80, "window": 19, "tied": True},
    "head-128": {"heads": 4, "kv_heads": 1, "head_dim": 128, "hidden": 130, "layers": 1},
    "relu": {"phi": "relu", "bias": True},
    "relu2": {"phi": "relu2", "psi": "relu", "tied": True},
    "vocabulary": {"vocabulary": 1000, "layers": 3},
    "deep": {"layers": 6, "intermediate": 17},
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("kv_dtype", [FP32, BF16], ids=["fp32-cache", "bf16-cache"])
def test_logits_and_counts(isa, pool, format, name, kv_dtype):
    model = toy(format, kv_dtype=kv_dtype, **SHAPES[name])
    ids = text(24)
    expected, wanted = model.answer(ids)
    sequence = model.sequence(positions=25)
    logits, counts = feed(model.decoder(pool, isa), model.tables(24), sequence, ids)
    assert logits.dtype == FP32
    assert relative(logits, expected) < tolerance(format, kv_dtype, len(model.layers))
    slack = 0 if not quantised(format) and kv_dtype == FP32 else 2
    assert int((counts - wanted).abs().max()) <= slack
    assert torch.isnan(sequence.keys[:, :, 24]).all(), "nothing is written behind the text"
    assert torch.isfinite(sequence.values[:, :, :24]).all()


def test_features_change_the_logits(pool):
    """Otherwise the comparisons above would show nothing."""
    ids = text(24)

    def logits(**changes):
        model = toy(**changes)
        return feed(model.decoder(pool), model.tables(24), model.sequence(), ids)[0]

    plain = logits()
    for changes in ({"window": 1}, {"window": 7}, {"bias": True}, {"phi": "relu"}, {"tied": True}):
        assert relative(logits(**changes), plain) > 1e-2
    assert 1e-4 < relative(logits(kv_dtype=BF16), plain) < 1e-2
    assert torch.equal(logits(window=100), plain)


@pytest.mark.parametrize("kv_dtype", [FP32, BF16])
def test_head_in_another_format_than_the_layers(isa, pool, kv_dtype):
    model = toy("int4", head_format="int8", tied=True, hidden=160, kv_dtype=kv_dtype)
    ids = text(12)
    logits, _ = feed(model.decoder(pool, isa), model.tables(12), model.sequence(), ids)
    assert relative(logits, model.answer(ids)[0]) < tolerance("int4", kv_dtype, 2)


@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize("kv_dtype", [FP32, BF16])
def test_long_texts_in_a_cache_that_grows(isa, pool, window, kv_dtype):
    """The capacity of a cache, and so where its heads lie, changes no bit."""
    model = toy(window=window, kv_dtype=kv_dtype, layers=1)
    ids = text(300)
    tables, decoder = model.tables(300), model.decoder(pool, isa)
    whole, _ = feed(decoder, tables, model.sequence(300), ids, chunk=16)
    assert relative(whole, model.answer(ids)[0]) < tolerance("fp32", kv_dtype, 1)
    small = model.sequence(20)
    parts = []
    for begin in range(0, 300, 20):
        grown = model.sequence(begin + 20)
        for one, other in ((grown.keys, small.keys), (grown.values, small.values)):
            one[:, :, :begin] = other[:, :, :begin]
        grown.length, small = begin, grown
        parts.append(feed(decoder, tables, small, ids[begin : begin + 20], chunk=7)[0])
    assert torch.equal(torch.cat(parts), whole)


def test_positions_out_of_sight_are_not_read(isa, pool):
    model = toy(window=5, kv_dtype=BF16)
    ids = text(30)
    tables, decoder = model.tables(30), model.decoder(pool, isa)
    expected, _ = feed(decoder, tables, model.sequence(), ids)
    sequence = model.sequence()
    feed(decoder, tables, sequence, ids[:20])
    sequence.keys[:, :, :16] = torch.nan
    sequence.values[:, :, :16] = torch.nan
    logits, _ = feed(decoder, tables, sequence, ids[20:])
    assert torch.equal(logits, expected[20:])
    sequence.values[:, :, 26] = torch.nan
    sequence.length -= 1
    assert torch.isnan(feed(decoder, tables, sequence, ids[29:])[0]).all()


def test_first_logits_leaves_out_the_heads_before(isa, pool, format):
    model = toy(format, head_format="int8")
    decoder, tables = model.decoder(pool, isa), model.tables(9)
    ids = text(9)
    expected, _ = feed(decoder, tables, model.sequence(), ids, chunk=9)
    for first in range(9):
        sequence = model.sequence()
        rows = [TokenRow(t, i, sequence.keys, sequence.values) for i, t in enumerate(ids)]
        logits, counts = decoder(rows, *tables, first_logits=first)
        assert torch.equal(logits, expected[first:])
        assert counts.shape == (2, 9, 2)


def test_thresholds_changed_in_place_take_effect(isa, pool, format):
    model = toy(format)
    decoder, tables, ids = model.decoder(pool, isa), model.tables(8), text(8)
    before = feed(decoder, tables, model.sequence(), ids)
    model.layers[1].ffn.threshold.fill_(torch.inf)
    logits, counts = feed(decoder, tables, model.sequence(), ids)
    assert not counts[1].any()
    assert torch.equal(counts[0], before[1][0])
    assert relative(logits, model.answer(ids)[0]) < tolerance(format, FP32, 2)
    model.layers[1].ffn.threshold.zero_()
    after = feed(decoder, tables, model.sequence(), ids)
    assert torch.equal(after[0], before[0])
    assert torch.equal(after[1], before[1])


def test_up_and_down_rows_of_skipped_neurons_are_not_read(isa, pool, format):
    model = toy(format)
    off = torch.arange(90) % 3 == 0
    for layer in model.layers:
        layer.ffn.threshold[off] = torch.inf
    ids = text(8)
    clean = feed(model.decoder(pool, isa), model.tables(8), model.sequence(), ids)
    assert (clean[1] == 60).all()
    for layer in model.layers:
        for weight in (layer.ffn.up, layer.ffn.down):
            _spoil(weight, off)
    spoilt = feed(model.decoder(pool, isa), model.tables(8), model.sequence(), ids)
    assert torch.equal(spoilt[0], clean[0])
    for layer in model.layers:
        layer.ffn.threshold.zero_()
    assert torch.isnan(
        feed(model.decoder(pool, isa), model.tables(8), model.sequence(), ids)[0]
    ).any()


def _spoil(weight: Matrix, rows: torch.Tensor) -> None:
    if quantised(weight.format):
        weight.data[rows, :4] = torch.full((2,), torch.nan, dtype=torch.float16).view(torch.uint8)
    else:
        weight.data[rows] = torch.nan


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_bad_values_reach_their_own_sequence_only(isa, pool, format, value):
    model = toy(format, head_format="fp32")
    model.embedding.data[5, 3] = value
    decoder, tables = model.decoder(pool, isa), model.tables(3)
    sequences = [model.sequence() for _ in range(6)]
    rows = [TokenRow(5 if b == 2 else 8, 0, s.keys, s.values) for b, s in enumerate(sequences)]
    logits, _ = decoder(rows, *tables)
    assert not torch.isfinite(logits[2]).any()
    for b in (0, 1, 3, 4, 5):
        assert torch.equal(logits[b], logits[0])
        assert torch.isfinite(logits[b]).all()


def test_large_scores_do_not_overflow(isa, pool):
    model = toy()
    for layer in model.layers:
        layer.qkv.data.mul_(30)
    ids = text(20)
    logits, _ = feed(model.decoder(pool, isa), model.tables(20), model.sequence(), ids)
    assert torch.isfinite(logits).all()
    assert relative(logits, model.answer(ids)[0]) < 1e-3


def test_memory_of_a_call_before_does_not_leak(isa, pool):
    model = toy("int8")
    ids = text(5)
    clean, _ = feed(model.decoder(pool, isa), model.tables(5), model.sequence(), ids)
    other = toy("fp32", hidden=300, intermediate=700, head_dim=64)
    other.embedding.data.fill_(torch.nan)
    assert torch.isnan(
        feed(other.decoder(pool, isa), other.tables(5), other.sequence(), ids)[0]
    ).all()
    assert torch.equal(
        feed(model.decoder(pool, isa), model.tables(5), model.sequence(), ids)[0], clean
    )


def test_weights_outlive_their_owner(pool):
    import gc

    model = toy("int4", bias=True)
    decoder, tables, sequence, ids = model.decoder(pool), model.tables(6), model.sequence(), text(6)
    expected, _ = feed(decoder, tables, model.sequence(), ids)
    del model
    gc.collect()
    clutter = [torch.full((1000,), torch.nan) for _ in range(2000)]
    assert torch.equal(feed(decoder, tables, sequence, ids)[0], expected)
    assert len(clutter) == 2000


def test_one_matrix_as_embedding_and_head(pool):
    model = toy("bf16", tied=True)
    copy = dataclasses.replace(
        model, head=Matrix.of(model.embedding.data.clone()), layers=list(model.layers)
    )
    ids = text(6)
    results = [
        feed(decoder, model.tables(6), model.sequence(), ids)[0]
        for decoder in (model.decoder(pool), copy.decoder(pool))
    ]
    assert torch.equal(*results)
    assert isinstance(model.decoder(pool), CpuDecoder)
