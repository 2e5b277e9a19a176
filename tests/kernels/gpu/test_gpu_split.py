"""Layers with cold neurons on the CPU: guides in Triton, and the whole way there and back."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from decoder_oracle import text, toy
from ffn_variants import HIDDEN, NEURONS, VARIANTS, inputs
from gpu_cases import DEVICE
from matrices import NEAR, relative
from test_gpu_decoder import SMALL, Batch

from sparseinfer.kernels.exchange import Exchange
from sparseinfer.kernels.gated_ffn.gpu_guide import GpuGuide
from sparseinfer.kernels.gated_ffn.gpu_neurons import FfnTile
from sparseinfer.kernels.gated_ffn.gpu_rules import gpu_ffn
from sparseinfer.kernels.gated_ffn.guide import GuideWeights
from sparseinfer.kernels.gated_ffn.parts import LayerParts
from sparseinfer.kernels.gated_ffn.reference import gated_ffn
from sparseinfer.kernels.gpu_rows import RowTile
from sparseinfer.kernels.masks import from_bits
from sparseinfer.kernels.placement import placed
from sparseinfer.kernels.segments import Segments
from sparseinfer.kernels.threads import CpuPool

POOL = CpuPool(1)
TILE = RowTile(rows=32)
FFN_TILE = FfnTile(rows=16, per_processor=1)
SOME = torch.tensor([0, 3, 4, 9, 20, 21, 48])
GUIDABLE = [name for name in VARIANTS if name != "planes"]


def split(weights, hot, guided, rows=16):
    parts = LayerParts(weights, hot, DEVICE, guided=guided)
    exchange = Exchange(rows, HIDDEN, NEURONS, DEVICE)
    return parts.op(partial(gpu_ffn, tile=FFN_TILE), partial(GpuGuide, tile=TILE), exchange, POOL)


@pytest.mark.parametrize("name", GUIDABLE)
@pytest.mark.parametrize("rows", [1, 17])
def test_guides_name_what_the_rule_needs(name, rows):
    weights, x = VARIANTS[name](), inputs(rows)
    bits = torch.full((-(-rows // 16), NEURONS), -1, dtype=torch.int16, device=DEVICE)
    GpuGuide(placed(GuideWeights.of(weights), DEVICE), TILE)(x.to(DEVICE), bits)
    named = from_bits(bits.cpu(), 16 * len(bits))
    assert not named[rows:].any()
    want = gated_ffn(x, weights)
    count = want.counts[:, 0] if want.gates is None else want.gates
    assert torch.equal(named[:rows].sum(1), count)
    if weights.predictor is None and weights.sketch is None:
        without = replace(weights, threshold=torch.zeros(NEURONS))
        assert torch.equal(gated_ffn(x, without, named[:rows]).y, want.y)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize(
    ("name", "rows"),
    [("bf16", 1), ("int8", 3), ("lowrank", 16), ("sign", 2), ("sketch 3", 2), ("down input", 5)],
)
def test_a_split_layer_computes_what_the_reference_does(name, rows, guided):
    weights, x = VARIANTS[name](), inputs(rows)
    want = gated_ffn(x, weights)
    op = split(weights, SOME, guided)
    found, again = op(x.to(DEVICE)), op(x.to(DEVICE))
    assert found.y.device.type == DEVICE.type
    assert torch.equal(found.y, again.y)
    # The CPU rounds inputs where weights are quantised.
    assert relative(found.y.cpu(), want.y) <= 3 * NEAR[weights.gate.format]
    for one, other in zip(found[1:], want[1:], strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one.cpu(), other)


@pytest.mark.parametrize("hot", [SOME[:0], SOME[:1], torch.arange(NEURONS - 1)])
def test_how_many_are_hot_does_not_matter(hot):
    weights, x = VARIANTS["planes"](), inputs(2)
    found = split(weights, hot, guided=False)(x.to(DEVICE))
    want = gated_ffn(x, weights)
    assert relative(found.y.cpu(), want.y) <= 3 * NEAR["int8"]
    assert torch.equal(found.counts.cpu(), want.counts)


@pytest.mark.parametrize("guided", [False, True])
def test_a_whole_step_stops_where_the_host_has_its_turns(guided):
    batch = Batch(toy(format="fp32", layers=3, **SMALL), [0, 5], text(30, vocabulary=40))
    model = batch.model
    exchange = Exchange(2, SMALL["hidden"], SMALL["intermediate"], DEVICE)
    every = torch.arange(SMALL["intermediate"])
    ffns = [
        LayerParts(layer.ffn, hot, DEVICE, guided=guided).op(gpu_ffn, GpuGuide, exchange, POOL)
        for layer, hot in zip(model.layers, (every[::3], every, every[:0]), strict=True)
    ]
    decoder = batch.decoder(ffns=ffns)
    for _ in range(2):
        turns = 0
        steps = decoder.steps(batch.rows())
        try:
            while True:
                next(steps)()
                turns += 1
        except StopIteration as end:
            logits, counts = end.value
        wanted, rows = batch.reference()
        assert turns == 4
        assert relative(logits.cpu(), wanted) < 1e-5
        assert torch.equal(counts.cpu(), rows)


@pytest.mark.skipif(DEVICE.type != "cuda", reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("rows", [1, 5])
def test_pieces_between_the_hosts_turns_are_captured(guided, rows):
    """Two split layers and one that is all hot, with other inputs at every replay."""
    weights = [VARIANTS[name]() for name in ("bf16", "fp32 relu", "bf16 relu2")]
    exchange = Exchange(16, HIDDEN, NEURONS, DEVICE)
    layers = [
        LayerParts(one, hot, DEVICE, guided=guided).op(gpu_ffn, GpuGuide, exchange, POOL)
        for one, hot in zip(weights, (SOME, torch.arange(NEURONS), SOME[:0]), strict=True)
    ]
    x = inputs(rows).to(DEVICE)

    def work():
        hidden = x
        for layer in layers:
            found = yield from layer.steps(hidden)
            hidden = hidden + found.y
        return hidden

    segments = Segments(work, DEVICE)
    for sign in (1, -1, 1):
        x.copy_(sign * inputs(rows))
        segments()
        found = segments.result.clone()
        segments()
        assert torch.equal(segments.result, found)
        want = x.cpu()
        for one in weights:
            want = want + gated_ffn(want, one).y
        assert relative(found.cpu(), want) <= 1e-4
