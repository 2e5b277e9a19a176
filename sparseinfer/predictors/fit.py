"""Trains a low-rank map: binary cross-entropy with a weight on positives, AdamW, early stopping.

The gradient of the loss is written out: with few inner values it costs as much as the matrix
products to go through it operation by operation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sparseinfer.predictors.metrics import relative_losses
from sparseinfer.predictors.observe import LayerRows, unpack_mask
from sparseinfer.predictors.records import Check
from sparseinfer.predictors.reduce import LowRankMap, Moments

BATCH = 1024
LEARNING_RATE = 4e-3
WEIGHT_DECAY = 1e-4
MOST_POSITIVE_WEIGHT = 4.0
CHECKS = 10
"""Times that a run is checked on held-out tokens."""
PATIENCE = 5
"""Checks without a gain after which it ends."""
SMALLEST_GAIN = 0.002
"""Of the output error, relative, that counts as one."""


@dataclass(frozen=True)
class HeldOut:
    """Tokens that are not trained on.

    Attributes:
        x: fp32 [T, H], normalized.
        active: bool [T, I].
        h: fp32 [T, I], the input of down under the rule.
        down: fp32 [H, I].
    """

    x: Tensor
    active: Tensor
    h: Tensor
    down: Tensor

    def check(self, low_rank: LowRankMap, seen: int, let_through: float) -> Check:
        """
        Args:
            let_through: fraction of neurons that are candidates.
        """
        logits = low_rank.logits(self.x)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, self.active.float())
        rank = min(logits.numel(), max(1, round((1 - let_through) * logits.numel())))
        candidates = logits >= logits.flatten().kthvalue(rank).values
        errors = relative_losses(candidates, self.h, self.down)
        return Check(seen=seen, loss=float(loss), output_error=float(errors.mean()))


def positive_weight(active: Tensor) -> float:
    """How much more a missed neuron counts than one let through in vain: as often as it is rarer,
    within bounds."""
    positives = float(active.double().mean())
    return min(MOST_POSITIVE_WEIGHT, max(1.0, (1 - positives) / max(positives, 1e-9)))


def fit(
    start: LowRankMap,
    rows: LayerRows,
    moments: Moments,
    held_out: HeldOut,
    *,
    visits: int,
    let_through: float,
    seed: int,
    progress: Callable[[int], None],
) -> tuple[LowRankMap, list[Check]]:
    """Trains a map.

    Args:
        visits: tokens to train on, repetitions counted; fewer where the error stops to fall.
        let_through: see `Check.output_error`.
        progress: called with the tokens trained on so far.

    Returns:
        The map at the check of least output error, and all checks.
    """
    low_rank, best = start.clone(), start.clone()
    neurons = len(start.bias)
    weight = positive_weight(held_out.active)
    parameters = [low_rank.inward, low_rank.outward, low_rank.bias]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    generator = torch.Generator().manual_seed(seed)
    checks = [held_out.check(low_rank, 0, let_through)]
    lowest, waited = checks[0].output_error, 0
    steps = max(1, visits // BATCH)
    order = torch.empty(0, dtype=torch.int64)
    for step in range(1, steps + 1):
        if len(order) < min(BATCH, len(rows)):
            order = torch.cat((order, torch.randperm(len(rows), generator=generator)))
        chosen, order = order[:BATCH], order[BATCH:]
        # Linear to 0: a mean over the last steps without keeping one.
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - (step - 1) / steps)
        batch = rows[chosen]
        active = unpack_mask(batch.masks, neurons)
        _set_gradients(low_rank, moments.normalized(batch.x), active, weight)
        optimizer.step()
        if step % max(1, steps // CHECKS) and step != steps:
            continue
        progress(step * BATCH)
        checks.append(held_out.check(low_rank, step * BATCH, let_through))
        error = checks[-1].output_error
        waited = 0 if error < lowest * (1 - SMALLEST_GAIN) else waited + 1
        if error < lowest:
            lowest, best = error, low_rank.clone()
        if waited == PATIENCE:
            break
    return best, checks


def _set_gradients(low_rank: LowRankMap, x: Tensor, active: Tensor, weight: float) -> None:
    """Of the mean over tokens of the loss summed over neurons,
    -weight y log p - (1 - y) log(1 - p) with p = sigmoid(logit)."""
    z = x @ low_rank.inward.T
    slope = torch.addmm(low_rank.bias, z, low_rank.outward.T).sigmoid_()
    # d loss / d logit: p where y = 0, weight (p - 1) where y = 1.
    slope = torch.where(active, weight * (slope - 1), slope).div_(len(x))
    low_rank.outward.grad = slope.T @ z
    low_rank.bias.grad = slope.sum(0)
    low_rank.inward.grad = (slope @ low_rank.outward).T @ x
