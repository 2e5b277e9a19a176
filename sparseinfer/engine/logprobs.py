"""Log-probabilities of tokens, from logits."""

from __future__ import annotations

import torch
from torch import Tensor

_ROWS = 16
"""Positions whose logits are widened to fp64 at a time, to keep memory small."""


def log_probabilities(logits: Tensor, tokens: Tensor) -> Tensor:
    """Natural-log probability [T] fp64 of one token [T] at each position, of logits [T, V]."""
    return logits.gather(1, tokens[:, None])[:, 0].double() - log_normalisers(logits)


def log_normalisers(logits: Tensor) -> Tensor:
    """[T] fp64, what is taken off logits [T, V] to make natural-log probabilities of them."""
    if logits.shape[0] == 0:
        return torch.empty(0, dtype=torch.float64)
    return torch.cat([part.double().logsumexp(1) for part in logits.split(_ROWS)])
