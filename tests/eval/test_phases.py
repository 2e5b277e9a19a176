"""Sparsity of generated tokens, apart from that of prompts."""

from __future__ import annotations

import pytest

from sparseinfer.engine import load
from sparseinfer.eval.phases import generate_for_counts, phase_sparsity
from sparseinfer.sparsity import SparsityCounts


def test_counts_are_those_of_four_greedy_continuations(sparse):
    model = load(sparse, threads=1)
    stream = [3 + i % 250 for i in range(500)]
    generate_for_counts(model, stream)
    prefill, decode = (phase_sparsity(model, model.sparsity(p)) for p in ("prefill", "decode"))
    alone = load(sparse, threads=1)
    for start in (0, 436 // 3, 2 * 436 // 3, 436):
        assert (
            len(list(alone.generate(stream[start : start + 64], max_tokens=64, stop_ids=()))) == 64
        )
    assert model.sparsity("decode") == alone.sparsity("decode")
    assert model.sparsity("prefill") == alone.sparsity("prefill")
    assert (prefill.tokens, decode.tokens) == (4 * 64, 4 * 63)
    counts = alone.sparsity("decode")
    expected = [1 - rows / (counts.tokens * 112) for rows in counts.up_rows]
    assert decode.layer_sparsity == pytest.approx(expected)
    assert decode.sparsities.neuron == pytest.approx(sum(expected) / 3)
    assert 0.2 < decode.sparsities.neuron < 0.8


@pytest.mark.parametrize("length", [1, 2, 3, 5, 70])
def test_short_texts_do(dense, length):
    model = load(dense, threads=1)
    generate_for_counts(model, list(range(5, 5 + length)))
    assert model.sparsity("prefill").tokens == min(4, length) * max(1, length // 4)
    assert model.sparsity("decode").tokens == min(4, length) * 63


def test_a_context_without_room_decodes_nothing(make_model):
    model = load(make_model(max_position_embeddings=2), threads=1)
    generate_for_counts(model, [5, 6, 7])
    assert model.sparsity("decode").tokens == 0
    assert phase_sparsity(model, model.sparsity("decode")) is None


def test_nothing_counted_is_none(dense):
    model = load(dense, threads=1)
    assert phase_sparsity(model, SparsityCounts(0, (0, 0, 0), (0, 0, 0))) is None
