"""What a layer is fitted on: inputs of its FFN, and what it should make of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

HELD_OUT = 20
"""One token of so many is not fitted on: the last ones."""
BLOCK = 2048
"""Rows that are looked at together."""


@dataclass(frozen=True)
class Rows:
    """Tokens of one layer.

    Attributes:
        x: fp32 [N, H], the FFN's input in the converted model.
        target: fp32 [N, H], its wanted output.
        weight: fp32 [N], what a token's squared error counts; those of the whole sample are scaled
            so that the weighted squared targets have mean 1.
    """

    x: Tensor
    target: Tensor
    weight: Tensor

    @classmethod
    def of(cls, x: Tensor, target: Tensor, weight: Tensor) -> Rows:
        """Scales the weights."""
        size = sum(
            float((w[:, None] * t.square()).sum(dtype=torch.float64))
            for t, w in zip(target.split(BLOCK), weight.split(BLOCK), strict=True)
        )
        return cls(x, target, weight * (len(weight) / max(size, 1e-30)))

    def __len__(self) -> int:
        return len(self.x)

    def blocks(self) -> Iterator[Rows]:
        """All rows in order, some at a time."""
        parts = (self.x.split(BLOCK), self.target.split(BLOCK), self.weight.split(BLOCK))
        for x, target, weight in zip(*parts, strict=True):
            yield Rows(x, target, weight)

    def split(self) -> tuple[Rows, Rows]:
        """Tokens to fit on, and tokens to measure on."""
        end = len(self) - max(1, len(self) // HELD_OUT)
        first, last = slice(0, end), slice(end, None)
        return (
            Rows(self.x[first], self.target[first], self.weight[first]),
            Rows(self.x[last], self.target[last], self.weight[last]),
        )
