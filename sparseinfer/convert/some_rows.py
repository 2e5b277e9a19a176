"""Every n-th row of all that pass."""

from __future__ import annotations

import torch
from torch import Tensor


class SomeRows:
    """The first row that is added, and every n-th after it."""

    def __init__(self, every: int) -> None:
        self._every = every
        self._seen = 0
        self._kept: list[Tensor] = []

    def add(self, rows: Tensor) -> None:
        """Takes [T, channels]."""
        self._kept.append(rows[-self._seen % self._every :: self._every].clone())
        self._seen += len(rows)

    def rows(self) -> Tensor:
        """Those that were kept, [n, channels]."""
        return torch.cat(self._kept)
