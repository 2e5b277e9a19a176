"""From what was seen of one layer to its low-rank predictor.

A wide map is guessed from the weights and trained for a short while; cut down to every rank, it
shows what each would give. The rank that is chosen is trained on, rounded to how it is stored, and
calibrated as it is stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from sparseinfer.config import DTypeName, ModelConfig
from sparseinfer.kernels.lowrank import LowRank
from sparseinfer.kernels.lowrank import reference as lowrank_reference
from sparseinfer.kernels.quantize import quantize
from sparseinfer.predictors.ffn import LayerFfn
from sparseinfer.predictors.fit import BATCH, HeldOut, fit
from sparseinfer.predictors.held_out import calibration_rows, measure, outputs, split
from sparseinfer.predictors.observe import LayerRows, unpack_mask
from sparseinfer.predictors.rank import choose_rank, ranks_to_try
from sparseinfer.predictors.records import Check, LayerRecord, RankTried, Store
from sparseinfer.predictors.reduce import LowRankMap, Moments, guess, reduced
from sparseinfer.predictors.threshold import logit_threshold

MOST_VISITS = 1 << 19
"""Tokens that a layer is trained on, repetitions counted."""
MOST_EPOCHS = 20
_WIDE_VISITS = 1 << 17
_CHECK_ROWS = 2048
_GUESS_ROWS = 8192


@dataclass(frozen=True)
class LowRankSettings:
    """How to train.

    Attributes:
        dtype: of the model's weights.
        rank: the rank of all layers; None: fitted to each.
    """

    config: ModelConfig
    dtype: DTypeName
    recall: float
    rank: int | None
    store: Store
    seed: int


def memory_to_train(config: ModelConfig, tokens: int) -> int:
    """Bytes that training a layer takes beside its rows, about: its weights, batches, and the
    logits of held-out tokens."""
    neurons = config.intermediate_size
    weights = 4 * config.ffn_weights_per_layer + 32 * config.hidden_size**2
    held_out = max(calibration_rows(tokens, neurons) * 9, 4 * _CHECK_ROWS * 4)
    return weights + neurons * (held_out + 5 * BATCH * 4)


def train_layer(
    rows: LayerRows,
    ffn: LayerFfn,
    layer: int,
    settings: LowRankSettings,
    progress: Callable[[int, int], None],
) -> tuple[LowRank, LayerRecord]:
    """Trains the predictor of one layer.

    Args:
        progress: called with (tokens trained on, of how many at most).
    """
    neurons = settings.config.intermediate_size
    parts = split(rows, neurons, training=True)
    moments = Moments.of(parts.train.x)
    some = parts.train[:_GUESS_ROWS]
    ranks = ranks_to_try(settings.config, settings.dtype, settings.store, settings.rank)
    tried: tuple[RankTried, ...] = ()
    checks: list[Check] = []
    if settings.recall >= 1:
        found = guess(ffn, moments, some, ranks[0])  # lets everything through, however it guesses
    else:
        check_rows = parts.calibrate[:_CHECK_ROWS]
        active, h = outputs(check_rows, ffn)
        held_out = HeldOut(moments.normalized(check_rows.x), active, h, ffn.down)
        found = guess(ffn, moments, some, ranks[-1])
        let_through = 1 - _predicted_sparsity(found, held_out, settings.recall)
        total = min(MOST_VISITS, MOST_EPOCHS * len(parts.train))
        wide = min(_WIDE_VISITS, total) if len(ranks) > 1 else 0

        def train(start: LowRankMap, visits: int, before: int) -> tuple[LowRankMap, list[Check]]:
            return fit(
                start,
                parts.train,
                moments,
                held_out,
                visits=visits,
                let_through=let_through,
                seed=settings.seed + layer,
                progress=lambda seen: progress(min(before + seen, wide + total), wide + total),
            )

        if wide:
            found, _ = train(found, wide, 0)
            tried = _try_ranks(found, moments, held_out, ranks, settings.recall)
            true_sparsity = 1 - float(active.double().mean())
            pairs = [(one.rank, one.predicted_sparsity) for one in tried]
            rank = choose_rank(
                settings.config, settings.dtype, settings.store, pairs, true_sparsity
            )
            if rank < found.rank:
                found = reduced(found, moments.correlation, rank)
        found, checks = train(found, total, wide)
        progress(wide + total, wide + total)
    predictor, threshold = _stored(found.folded(moments), settings, parts.calibrate)
    record = LayerRecord(
        bytes_per_token=predictor.bytes_per_token,
        rank=predictor.rank,
        threshold=threshold if math.isfinite(threshold) else None,
        quality=measure(parts.measure, ffn, lambda x: lowrank_reference.candidates(x, predictor)),
        ranks=tried,
        checks=tuple(checks),
    )
    return predictor, record


def _try_ranks(
    wide: LowRankMap, moments: Moments, held_out: HeldOut, ranks: tuple[int, ...], recall: float
) -> tuple[RankTried, ...]:
    tried = []
    for rank in ranks:
        cut = wide if rank == wide.rank else reduced(wide, moments.correlation, rank)
        sparsity = _predicted_sparsity(cut, held_out, recall)
        tried.append(RankTried(rank=rank, predicted_sparsity=sparsity))
    return tuple(tried)


def _predicted_sparsity(low_rank: LowRankMap, held_out: HeldOut, recall: float) -> float:
    logits = low_rank.logits(held_out.x)
    threshold = logit_threshold(logits, held_out.active, recall)
    return float((logits < threshold).double().mean())


def _stored(
    low_rank: LowRankMap, settings: LowRankSettings, rows: LayerRows
) -> tuple[LowRank, float]:
    """The predictor as it is stored, and the logit that was its threshold before it was taken off
    the bias."""
    inward = quantize(low_rank.inward, settings.store)
    outward = quantize(low_rank.outward, settings.store)

    def with_bias(bias: Tensor) -> LowRank:
        return LowRank(inward, outward, bias.contiguous())

    logits = lowrank_reference.logits(rows.x.float(), with_bias(low_rank.bias))
    active = unpack_mask(rows.masks, settings.config.intermediate_size)
    threshold = logit_threshold(logits, active, settings.recall)
    return with_bias(low_rank.bias - threshold), threshold
