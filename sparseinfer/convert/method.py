"""What a conversion method is: a way to choose (phi, psi, t)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class UpStatistics:
    """What calibration knows about each channel's u = x W_up, over all tokens, fp64 [I]."""

    mean_abs: torch.Tensor
    mean_square: torch.Tensor


ChannelWeight = Callable[[UpStatistics], torch.Tensor]
"""Weight w [I] of a score |a_i| w_i. A neuron is active where its score reaches the layer's
quantile theta, that is where |a_i| >= theta / w_i."""


def equal_weights(up: UpStatistics) -> torch.Tensor:
    """Scores |a| alone: the same threshold for every channel."""
    return torch.ones_like(up.mean_abs)


@dataclass(frozen=True)
class Method:
    """One way to make neurons inactive.

    Attributes:
        hidden_act: activation the converted model runs; None keeps the parent's.
        scores: name -> channel weight of the scores a threshold can be calibrated on, the default
            first; empty for methods without thresholds.
        needs_sparsity: there is no useful threshold without a target.
        constant: threshold used when no target is given.
        needs_finetuning: quality collapses until the model is tuned.
        elsewhere: what plain transformers computes from the result.
    """

    name: str
    source: str
    hidden_act: str | None
    scores: dict[str, ChannelWeight]
    needs_sparsity: bool
    needs_finetuning: bool
    elsewhere: str
    constant: float | None = None

    @property
    def has_thresholds(self) -> bool:
        return bool(self.scores)
