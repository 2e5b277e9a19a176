"""Training batches as a function of the step: windows of the packed token stream.

Nothing is remembered from batch to batch, so a run that goes on at step n needs no state of its
data, and several processes share a batch without talking to each other.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparseinfer.errors import ConfigError, SourceError
from sparseinfer.finetune.token_store import TokenSource

_OFFSET, _ORDER = 0, 1
"""What a random number is drawn for."""


class PackedBatches:
    """Windows of `context` tokens, cut from the stream without regard to where documents end.

    Of N tokens an epoch takes N // context windows, which do not overlap, each once. They begin at
    an offset that is another in each epoch, so that windows are cut elsewhere; the stream is a ring
    for this, and one window of an epoch may run from its end to its beginning. Offset and order of
    an epoch depend on the seed and the number of the epoch alone.
    """

    def __init__(self, tokens: TokenSource, *, context: int, seed: int) -> None:
        """
        Args:
            context: tokens of a window, 2 or more.
            seed: 0 or more.

        Raises:
            ConfigError: one of these outside its domain.
            SourceError: a stream of less than one window.
        """
        if context < 2:
            raise ConfigError(f"context {context} is too short: a window has 2 tokens or more")
        if seed < 0:
            raise ConfigError(f"seed {seed} is negative")
        if len(tokens) < context:
            raise SourceError(
                f"the text has {len(tokens):,} tokens, and one window needs {context:,}: give more "
                "text, or a smaller context"
            )
        self._tokens = tokens
        self._context = context
        self._seed = seed
        # Batches go on from one epoch into the next.
        self._order = lru_cache(maxsize=2)(self._draw_order)

    @property
    def windows_per_epoch(self) -> int:
        return len(self._tokens) // self._context

    def batch(self, step: int, size: int, rank: int = 0, world: int = 1) -> Tensor:
        """The batch of a step: int64 [size / world, context].

        Args:
            step: from 0.
            size: windows of the batch in all processes together.
            rank, world: number of this process, and of processes; theirs one after the other are
                the batch of a single process.

        Raises:
            ConfigError: a size that is not a multiple of `world`.
        """
        if size < 1 or size % world:
            raise ConfigError(f"a batch of {size} windows cannot be shared by {world} processes")
        rows = size // world
        first = step * size + rank * rows
        return torch.stack([self._window(first + row) for row in range(rows)])

    def _window(self, number: int) -> Tensor:
        """The window that is trained on as number `number` of the run."""
        epoch, place = divmod(number, self.windows_per_epoch)
        offset, order = self._order(epoch)
        begin = (offset + int(order[place]) * self._context) % len(self._tokens)
        count = min(self._context, len(self._tokens) - begin)
        window = self._tokens.read(begin, count)
        if count == self._context:
            return window
        return torch.cat((window, self._tokens.read(0, self._context - count)))

    def _draw_order(self, epoch: int) -> tuple[int, np.ndarray[Any, Any]]:
        """Where the first window of an epoch begins, and in which order windows come."""
        offset = np.random.default_rng([self._seed, epoch, _OFFSET]).integers(self._context)
        order = np.random.default_rng([self._seed, epoch, _ORDER])
        return int(offset), order.permutation(self.windows_per_epoch)
