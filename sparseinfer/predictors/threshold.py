"""Thresholds that let a wanted fraction of true positives through."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def logit_threshold(logits: Tensor, active: Tensor, recall: float) -> float:
    """The largest t for which at least `recall` of the active neurons have logit >= t.

    Args:
        logits: fp32 [T, I].
        active: bool [T, I].
        recall: in (0, 1]. 1 gives -inf: what no neuron missed on these tokens one may miss on
            others, so that certainty means letting everything through.

    Returns:
        inf where no neuron is active.
    """
    if recall >= 1:
        return -math.inf
    positives = logits[active]
    if not len(positives):
        return math.inf
    missed = min(math.floor((1 - recall) * len(positives)), len(positives) - 1)
    return float(positives.kthvalue(missed + 1).values)


def most_negatives(negatives: Tensor, active: Tensor, recall: float, hidden: int) -> int:
    """The smallest m for which at least `recall` of the active neurons have negatives <= m.

    Args:
        negatives: int64 [T, I], products of negative sign.
        active: bool [T, I].
        recall: in (0, 1]; 1 gives H, everything.
        hidden: H.

    Returns:
        -1 where no neuron is active.
    """
    if recall >= 1:
        return hidden
    counts = torch.bincount(negatives[active], minlength=hidden + 1).cumsum(0)
    total = int(counts[-1])
    if not total:
        return -1
    return int((counts < recall * total).sum())
