"""One layer: the guess, training, rank, rounding and calibration."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.errors import ConfigError
from sparseinfer.kernels.lowrank import reference as lowrank_reference
from sparseinfer.kernels.sign import most_negative
from sparseinfer.predictors.fit import CHECKS, HeldOut, _set_gradients, fit
from sparseinfer.predictors.held_out import outputs, split
from sparseinfer.predictors.lowrank_layer import LowRankSettings, train_layer
from sparseinfer.predictors.observe import unpack_mask
from sparseinfer.predictors.rank import choose_rank, largest_rank, predictor_bytes, ranks_to_try
from sparseinfer.predictors.reduce import LowRankMap, Moments, guess, reduced
from sparseinfer.predictors.sign_layer import calibrate_layer
from sparseinfer.predictors.threshold import logit_threshold

from .conftest import planted_layer


@pytest.fixture(scope="module")
def config(make_model):
    config = Checkpoint.open(make_model(hidden_act="relu")).config
    return replace(config, hidden_size=64, intermediate_size=192)


@pytest.fixture(scope="module")
def settings(config):
    return LowRankSettings(config, "fp32", recall=0.95, rank=None, store="bf16", seed=0)


def run(settings, **options):
    rows, ffn = planted_layer(**options)
    return train_layer(rows, ffn, 0, settings, lambda done, of: None)


def test_a_planted_structure_is_found(settings, config):
    predictor, record = run(settings)
    quality = record.quality
    assert quality.recall == pytest.approx(0.95, abs=0.02)
    assert quality.predicted_sparsity > quality.true_sparsity - 0.1
    assert quality.output_error < 0.15
    assert predictor.bytes_per_token == record.bytes_per_token
    assert record.bytes_per_token <= 0.1 * 3 * 64 * 192 * 4
    assert record.reaches_half
    assert [one.rank for one in record.ranks] == list(ranks_to_try(config, "fp32", "bf16", None))


def test_training_finds_the_structure_from_a_random_start():
    rows, ffn = planted_layer()
    parts = split(rows, 192, training=True)
    moments = Moments.of(parts.train.x)
    active, h = outputs(parts.calibrate, ffn)
    held_out = HeldOut(moments.normalized(parts.calibrate.x), active, h, ffn.down)
    random = torch.Generator().manual_seed(0)
    start = LowRankMap(
        0.1 * torch.randn(6, 64, generator=random),
        0.1 * torch.randn(192, 6, generator=random),
        torch.zeros(192),
    )
    seen = []
    found, checks = fit(
        start, parts.train, moments, held_out, visits=200_000, let_through=0.25, seed=0,
        progress=seen.append,
    )  # fmt: skip
    errors = [check.output_error for check in checks]
    assert errors[0] > 0.5
    assert min(errors) < 0.1
    assert held_out.check(found, 0, 0.25).output_error == pytest.approx(min(errors))
    assert seen == [check.seen for check in checks[1:]]


def test_training_ends_when_nothing_is_gained():
    """Labels that have nothing to do with the inputs."""
    rows, ffn = planted_layer(rows=3000)
    rows.masks[:] = rows.masks[torch.randperm(3000)]
    parts = split(rows, 192, training=True)
    moments = Moments.of(parts.train.x)
    active, h = outputs(parts.calibrate, ffn)
    held_out = HeldOut(moments.normalized(parts.calibrate.x), active, h, ffn.down)
    start = guess(ffn, moments, parts.train, 4)
    _, checks = fit(
        start, parts.train, moments, held_out, visits=1 << 20, let_through=0.5, seed=0,
        progress=lambda seen: None,
    )  # fmt: skip
    assert len(checks) < CHECKS


def test_the_record_says_what_the_stored_predictor_does(settings):
    rows, ffn = planted_layer()
    predictor, record = train_layer(rows, ffn, 0, settings, lambda done, of: None)
    part = split(rows, 192, training=True).measure
    candidates = lowrank_reference.candidates(part.x.float(), predictor)
    active = unpack_mask(part.masks, 192)
    recall = float((active & candidates).sum() / active.sum())
    assert record.quality.recall == pytest.approx(recall)
    assert record.quality.predicted_sparsity == pytest.approx(1 - float(candidates.float().mean()))


def test_the_same_seed_gives_the_same_predictor_and_another_another(settings):
    (first, record), (again, same) = run(settings), run(settings)
    assert torch.equal(first.inward.data, again.inward.data)
    assert torch.equal(first.bias, again.bias)
    assert record == same
    _, other = run(replace(settings, seed=1))
    assert other.checks != record.checks


def test_int8_is_calibrated_as_it_is_stored(settings):
    predictor, record = run(replace(settings, store="int8", rank=4))
    assert predictor.inward.format == "int8"
    assert record.quality.recall == pytest.approx(0.95, abs=0.02)


def test_recall_1_lets_everything_through_without_training(settings):
    predictor, record = run(replace(settings, recall=1.0))
    assert bool(torch.isinf(predictor.bias).all())
    assert bool(lowrank_reference.candidates(torch.full((1, 64), 1e4), predictor).all())
    assert (record.quality.recall, record.quality.predicted_sparsity) == (1, 0)
    assert record.checks == ()


def test_a_layer_that_never_fires(settings):
    rows, ffn = planted_layer(rows=2000)
    rows.masks.zero_()
    predictor, record = train_layer(rows, ffn, 0, settings, lambda done, of: None)
    assert not bool(lowrank_reference.candidates(rows.x[:9].float(), predictor).any())
    assert record.quality.predicted_sparsity == 1


def test_gradients_are_those_of_the_loss():
    random = torch.Generator().manual_seed(0)
    x = torch.randn(7, 5, generator=random)
    active = torch.rand(7, 6, generator=random) < 0.4
    parts = [torch.randn(s, generator=random) for s in ((3, 5), (6, 3), (6,))]
    ours = LowRankMap(*[part.clone() for part in parts])
    _set_gradients(ours, x, active, 2.5)
    theirs = LowRankMap(*[part.clone().requires_grad_() for part in parts])
    loss = torch.nn.functional.binary_cross_entropy_with_logits(
        theirs.logits(x), active.float(), pos_weight=torch.tensor(2.5), reduction="sum"
    )
    (loss / 7).backward()
    for name in ("inward", "outward", "bias"):
        torch.testing.assert_close(getattr(ours, name).grad, getattr(theirs, name).grad)


def test_reduction_keeps_most_of_the_logits_variance():
    random = torch.Generator().manual_seed(0)
    x = torch.randn(500, 12, generator=random) @ torch.randn(12, 12, generator=random)
    moments = Moments.of(x)
    normalized = moments.normalized(x)
    wide = LowRankMap(torch.eye(12), torch.randn(30, 12, generator=random), torch.zeros(30))
    logits = wide.logits(normalized)
    best = torch.linalg.svdvals(logits.double())
    for rank in (1, 4, 11, 12):
        low = reduced(wide, moments.correlation, rank)
        assert low.rank == rank
        error = (low.logits(normalized) - logits).double().norm()
        torch.testing.assert_close(error, best[rank:].norm(), rtol=1e-3, atol=1e-3)
        inner = normalized @ low.inward.T
        torch.testing.assert_close(inner.T @ inner / 500, torch.eye(rank), rtol=1e-2, atol=1e-2)


def test_folding_takes_x_in_place_of_normalized_x():
    x = 3 + 2 * torch.randn(100, 8)
    moments = Moments.of(x)
    low = LowRankMap(torch.randn(3, 8), torch.randn(20, 3), torch.randn(20))
    folded = low.folded(moments)
    torch.testing.assert_close(
        folded.logits(x), low.logits(moments.normalized(x)), rtol=1e-4, atol=1e-4
    )


def test_the_guess_alone_finds_what_is_planted():
    rows, ffn = planted_layer()
    moments = Moments.of(rows.x)
    logits = guess(ffn, moments, rows[:4000], 8).logits(moments.normalized(rows.x[5000:]))
    active = unpack_mask(rows.masks[5000:], 192)
    threshold = logit_threshold(logits, active, 0.95)
    assert float((logits < threshold).float().mean()) > 0.6


def test_the_largest_rank_is_the_largest_within_a_tenth_of_the_bytes(config):
    for store in ("bf16", "int8"):
        rank = largest_rank(config, "fp32", store)
        limit = 0.1 * 3 * 64 * 192 * 4
        assert predictor_bytes(config, rank, store) <= limit
        assert predictor_bytes(config, rank + 1, store) > limit
        assert ranks_to_try(config, "fp32", store, None)[-1] == rank
    with pytest.raises(ConfigError, match=r"rank 500 is not between 1 and"):
        ranks_to_try(config, "bf16", "bf16", 500)
    tiny = replace(config, hidden_size=4, intermediate_size=4)
    with pytest.raises(ConfigError, match="too small"):
        ranks_to_try(tiny, "bf16", "bf16", None)


def test_the_rank_is_where_a_token_reads_the_fewest_bytes(config):
    def choose(*pairs, true=0.9):
        return choose_rank(config, "fp32", "bf16", pairs, true)

    assert choose((4, 0.85), (8, 0.86)) == 4  # 4 more cost 2 KB, 4% of the gate
    assert choose((4, 0.85), (8, 0.90)) == 8
    assert choose((4, 0.75), (8, 0.79), (12, 0.81)) == 12  # the others are not close
    assert choose((4, 0.30), (8, 0.30), (12, 0.302)) == 4  # none is: what gains nothing goes


def test_sign_reaches_its_recall_on_other_tokens():
    rows, ffn = planted_layer(noise=1.0)
    for recall in (0.7, 0.9):
        record = calibrate_layer(rows, ffn, recall)
        assert record.quality.recall == pytest.approx(recall, abs=0.08)
        assert record.alpha is not None
        assert most_negative(record.alpha, 64) == record.most
    everything = calibrate_layer(rows, ffn, 1.0)
    assert (everything.most, everything.alpha) == (64, None)
    assert everything.quality.predicted_sparsity == 0
