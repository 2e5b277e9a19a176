"""A model's FFNs as a plan divides them: what each layer computes, and where its rows are."""

from __future__ import annotations

import pytest
import torch

from sparseinfer.engine.residency import fixed_bytes, neuron_bytes, plan
from sparseinfer.engine.split_layers import SplitLayers
from sparseinfer.kernels.gated_ffn.cpu import CpuGatedFfn
from sparseinfer.kernels.gated_ffn.neurons import row_tensors
from sparseinfer.kernels.gated_ffn.reference import gated_ffn
from sparseinfer.kernels.threads import CpuPool
from sparseinfer.packed import load_model, open_model

CPU = torch.device("cpu")
POOL = CpuPool(1)


def no_guide(_weights):
    return lambda _x, bits: bits.fill_(-1)  # every neuron, for every row


@pytest.fixture
def weights(converted):
    return load_model(open_model(converted("cats")), "bf16").weights


def split(weights, share: float, rows: int = 4, **options):
    """With this share of the neurons' bytes on the GPU."""
    layers, fixed = neuron_bytes(weights), fixed_bytes(weights)
    rates = [torch.rand(one.neurons, generator=torch.Generator().manual_seed(0)) for one in layers]
    budget = sum(fixed.values()) + int(share * sum(one.neurons * one.hot for one in layers))
    residency = plan(budget, fixed, layers, rates, **options)
    made = SplitLayers(
        weights,
        residency,
        device=CPU,
        rows=rows,
        pool=POOL,
        make_hot=lambda part: CpuGatedFfn(part, POOL),
        make_guide=no_guide,
    )
    return residency, made


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_layers_compute_what_they_did(weights, share):
    residency, made = split(weights, share, guides=False)
    x = torch.randn(4, 48, generator=torch.Generator().manual_seed(1))
    for layer, ffn, part, hot in zip(
        weights.layers, made.ffns, made.parts, residency.hot, strict=True
    ):
        want = gated_ffn(x, layer.ffn)
        found = ffn(x)
        torch.testing.assert_close(found.y, want.y, atol=1e-5, rtol=1e-3)
        assert torch.equal(found.counts, want.counts)
        assert (0 if part.hot is None else part.hot.intermediate) == len(hot)


def test_cold_rows_are_copies_and_whole_layers_are_not(weights):
    whole = weights.layers[0].ffn.gate.data.untyped_storage().data_ptr()
    for share, copied in ((0.4, True), (0.0, False)):
        _, made = split(weights, share, guides=False)
        for part in made.parts:
            homes = {one.untyped_storage().data_ptr() for one in row_tensors(part.cold)}
            assert (whole in homes) != copied


def test_guides_are_made_where_the_plan_says_so(weights):
    residency, made = split(weights, 0.5)
    assert any(residency.guided)
    assert [part.guide is not None for part in made.parts] == list(residency.guided)


def test_thresholds_are_taken_over(weights):
    _, made = split(weights, 0.4, guides=False)
    x = torch.randn(2, 48, generator=torch.Generator().manual_seed(1))
    for layer in weights.layers:
        layer.ffn.threshold.fill_(0.1)
    made.take_thresholds()
    for layer, ffn in zip(weights.layers, made.ffns, strict=True):
        assert torch.equal(ffn(x).counts, gated_ffn(x, layer.ffn).counts)
