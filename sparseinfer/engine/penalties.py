"""Biases and penalties: logits changed as a request says, and by what its text holds already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sparseinfer.engine.sampling import Sampling


class Penalties:
    """Changes the logits of one sequence, and is told of each token that joins it."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int] | Tensor, vocabulary: int) -> None:
        """
        Args:
            prompt: ids of the tokens before the answer.
            vocabulary: V.
        """
        self._repetition = sampling.repetition_penalty
        self._presence = sampling.presence_penalty
        self._frequency = sampling.frequency_penalty
        # Whole vectors: changing all logits takes less time than finding those that change.
        self._bias = torch.zeros(vocabulary)
        for token, bias in (sampling.logit_bias or {}).items():
            self._bias[token] = bias
        self._seen = torch.zeros(vocabulary, dtype=torch.bool)
        self._seen[torch.as_tensor(prompt, dtype=torch.int64)] = True
        self._counts = torch.zeros(vocabulary)

    @staticmethod
    def wanted(sampling: Sampling) -> bool:
        """Whether there is anything to change."""
        return bool(
            sampling.logit_bias
            or sampling.repetition_penalty != 1
            or sampling.presence_penalty
            or sampling.frequency_penalty
        )

    def add(self, token: int) -> None:
        """One more token of the answer."""
        self._seen[token] = True
        self._counts[token] += 1

    def __call__(self, logits: Tensor) -> Tensor:
        """Other logits [V] in place of these [V]: with the bias, then the penalty on repetition,
        then those on presence and frequency."""
        changed = logits + self._bias
        if self._repetition != 1:
            smaller = torch.where(
                changed < 0, changed * self._repetition, changed / self._repetition
            )
            changed = torch.where(self._seen, smaller, changed)
        if self._presence or self._frequency:
            changed -= self._frequency * self._counts + self._presence * (self._counts > 0)
        return changed
