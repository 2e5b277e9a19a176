"""What a predictor loses, measured on some of the tokens that are decoded."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Recall:
    """Neurons of each layer, over the last tokens that were sampled."""

    samples: int
    """Tokens that were sampled so far,"""
    tokens: int
    """and the last ones of them, which the rest is about."""
    let_through: tuple[int, ...]
    """Those that fire and that the predictor lets through."""
    firing: tuple[int, ...]
    """Those that fire by their gates, given the same inputs."""

    @property
    def by_layer(self) -> list[float] | None:
        """Of the neurons that fire, the fraction that is let through, in [0, 1]; 1 where none
        fires, as in `predictors.metrics`. None before any token."""
        if self.tokens == 0:
            return None
        pairs = zip(self.let_through, self.firing, strict=True)
        return [through / firing if firing else 1.0 for through, firing in pairs]


class RecallWindow:
    """The last tokens that were sampled.

    Args:
        layers: of the model.
        tokens: to keep, at least, once there were so many.
    """

    def __init__(self, layers: int, tokens: int) -> None:
        nothing = (0,) * layers
        self.recall = Recall(0, 0, nothing, nothing)
        """What they say. Replaced, never changed: other threads may read it."""
        self._most = tokens
        self._past: deque[tuple[int, np.ndarray]] = deque()
        """Of each step: tokens, and int64 [2, L]."""
        self._tokens = 0
        self._sums = np.zeros((2, layers), dtype=np.int64)

    def add(self, counts: Tensor, firing: Tensor) -> None:
        """Adds a step of B tokens.

        Args:
            counts: [L, B, ...], rows of up first, as a runner's `sampled_step` gives them.
            firing: [L, B], from there too.
        """
        tokens = firing.shape[1]
        both = np.stack([one.numpy().sum(1, dtype=np.int64) for one in (counts[:, :, 0], firing)])
        self._past.append((tokens, both))
        self._tokens += tokens
        self._sums += both
        while self._tokens - self._past[0][0] >= self._most:
            old, both = self._past.popleft()
            self._tokens -= old
            self._sums -= both
        let_through, fired = self._sums.tolist()
        samples = self.recall.samples + tokens
        self.recall = Recall(samples, self._tokens, tuple(let_through), tuple(fired))
