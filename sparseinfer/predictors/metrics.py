"""How good guesses are: what they let through, what they lose, and what that does to the output."""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor


class Quality(BaseModel):
    """A predictor of one layer on some tokens; all fractions in [0, 1]."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: int = Field(gt=0)
    recall: float
    """Of the neurons that fire, the fraction that is let through; 1 where none fires."""
    precision: float
    """Of the neurons that are let through, the fraction that fires; 1 where none is."""
    true_sparsity: float
    """Fraction of neurons that do not fire."""
    predicted_sparsity: float
    """Fraction of neurons that are not let through."""
    output_error: float
    """norm(y - y') / norm(y), mean over tokens, of the FFN's output without bias: y as the rule
    makes it, y' where only what is let through can count."""


class QualityCounts:
    """Sums over tokens, a block of them at a time."""

    def __init__(self) -> None:
        self._tokens = self._neurons = self._fire = self._let_through = self._both = 0
        self._error = 0.0

    def add(self, active: Tensor, candidates: Tensor, h: Tensor, down: Tensor) -> None:
        """Adds T tokens.

        Args:
            active: bool [T, I], the rule's own mask.
            candidates: bool [T, I], what the predictor lets through.
            h: fp32 [T, I], the input of down under the rule: 0 where a neuron does not fire.
            down: fp32 [H, I], as Hugging Face stores it.
        """
        self._tokens += len(active)
        self._neurons += active.numel()
        self._fire += int(active.sum())
        self._let_through += int(candidates.sum())
        self._both += int((active & candidates).sum())
        self._error += float(relative_losses(candidates, h, down).sum())

    def quality(self) -> Quality:
        """
        Raises:
            ValueError: no tokens were added.
        """
        if not self._tokens:
            raise ValueError("no tokens were measured")
        return Quality(
            tokens=self._tokens,
            recall=self._both / self._fire if self._fire else 1.0,
            precision=self._both / self._let_through if self._let_through else 1.0,
            true_sparsity=1 - self._fire / self._neurons,
            predicted_sparsity=1 - self._let_through / self._neurons,
            output_error=self._error / self._tokens,
        )


def relative_losses(candidates: Tensor, h: Tensor, down: Tensor) -> Tensor:
    """norm(y - y') / norm(y) of each token, fp64 [T]; 0 where nothing is lost.

    Args:
        candidates, h, down: as of `QualityCounts.add`.
    """
    whole = (h @ down.T).double().norm(dim=1)
    lost = (torch.where(candidates, 0.0, h) @ down.T).double().norm(dim=1)
    return torch.where(lost == 0, 0.0, lost / whole)
