"""Token by token, in one pass, and in transformers: the same function."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.engine import load
from sparseinfer.formats import WeightFormats
from sparseinfer.kernels.gated_ffn import reference
from sparseinfer.kernels.gated_ffn.cpu import CpuGatedFfn
from sparseinfer.kernels.threads import CpuPool
from sparseinfer.packed import pack

from .conftest import CALIBRATED, PARENTS
from .oracle import (
    ffn_inputs,
    hf_logits,
    hf_model,
    masked_ffn,
    masked_model,
    random_ids,
    relative_error,
    thresholds_of,
)

THRESHOLDED = pytest.mark.parametrize("act", list(CALIBRATED))
FAMILIES = pytest.mark.parametrize("family", ["llama", "mistral"])
NEAR = 1e-5
"""Neurons this near to their threshold, relatively, may be rounded to either side."""


@FAMILIES
@pytest.mark.parametrize("act", ["dense", "relu", "relu2", "drelu"])
def test_smooth_methods_decode_what_they_prefill(make_model, converted, act, family):
    dense = act == "dense"
    folder = make_model(family, **PARENTS[family]) if dense else converted(act, family)
    model = load(folder, threads=1)
    ids = random_ids(120)
    one_pass = model.logits(ids)
    by_token = model.logits(ids, by="decode")
    assert relative_error(by_token, one_pass) < 1e-5
    for position in range(len(ids)):
        assert relative_error(by_token[position], one_pass[position]) < 1e-4, position


def _without_near_neurons(mlp, x, threshold):
    """The thresholds, with neurons that are near them on any token switched off."""
    a = mlp.act_fn(mlp.gate_proj(x)).abs()
    near = ((a - threshold).abs() <= NEAR * threshold).any(0)
    assert near.float().mean() < 0.1
    return threshold.masked_fill(near, math.inf)


@THRESHOLDED
@FAMILIES
@torch.no_grad()
def test_every_layers_ffn_equals_a_masked_ffn_on_the_same_inputs(converted, prose_ids, act, family):
    """Native kernel, reference, and a masked transformers MLP."""
    folder = converted(act, family)
    layers = pack(Checkpoint.open(folder), WeightFormats.of("fp32")).layers
    plain = hf_model(folder)
    inputs = ffn_inputs(masked_model(folder), prose_ids[0])
    pool = CpuPool(2)
    stored = thresholds_of(folder)
    for layer, x, threshold, decoder in zip(
        layers, inputs, stored, plain.model.layers, strict=True
    ):
        assert torch.equal(layer.ffn.threshold, threshold)
        safe = _without_near_neurons(decoder.mlp, x, threshold)
        weights = replace(layer.ffn, threshold=safe)
        expected = masked_ffn(decoder.mlp, x, safe)
        kernel = CpuGatedFfn(weights, pool)(x)
        plain_torch = reference.gated_ffn(x, weights)
        assert relative_error(kernel.y, expected) < 1e-5
        assert relative_error(plain_torch.y, expected) < 1e-5
        assert torch.equal(kernel.counts, plain_torch.counts)
        kept = (decoder.mlp.act_fn(decoder.mlp.gate_proj(x)).abs() >= safe).sum(1)
        assert torch.equal(kernel.counts[:, 0], kept)
        # The mask matters here, or the comparison would show nothing.
        assert relative_error(expected, decoder.mlp(x)) > 1e-2
        assert abs(kept.float().mean() / 112 - (1 - CALIBRATED[act])) < 0.1


def _perplexity(windows, log_probabilities) -> float:
    total = sum(float(log_probabilities(ids).sum()) for ids in windows)
    return math.exp(-total / sum(len(ids) - 1 for ids in windows))


@THRESHOLDED
@FAMILIES
def test_perplexity_by_decode_by_prefill_and_in_transformers_agree(
    converted, prose_ids, act, family
):
    folder = converted(act, family)
    model = load(folder, threads=1)
    masked = masked_model(folder)

    def hf_score(ids):
        log_p = hf_logits(masked, ids).double().log_softmax(-1)
        return log_p[:-1].gather(1, torch.tensor(ids[1:])[:, None])

    by_prefill = _perplexity(prose_ids, model.score)
    by_decode = _perplexity(prose_ids, lambda ids: model.score(ids, by="decode"))
    in_transformers = _perplexity(prose_ids, hf_score)
    assert by_decode == pytest.approx(by_prefill, rel=5e-3)
    assert by_prefill == pytest.approx(in_transformers, rel=5e-3)
    assert by_decode == pytest.approx(in_transformers, rel=5e-3)
    dense = hf_model(folder)
    assert relative_error(hf_logits(dense, prose_ids[0]), hf_logits(masked, prose_ids[0])) > 1e-2


@THRESHOLDED
def test_realised_sparsity_on_prose_is_what_was_calibrated(converted, prose_ids, act):
    model = load(converted(act), threads=1)
    for ids in prose_ids:
        model.logits(ids)
    for realised in model.sparsity().neuron_sparsity(model.config):
        assert realised == pytest.approx(CALIBRATED[act], abs=0.05)
