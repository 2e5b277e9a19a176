"""Tokens through a runner, in chunks, with what was read counted by phase."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import get_args

import torch

from sparseinfer.engine.cache import KVCache
from sparseinfer.engine.counts import Counter
from sparseinfer.engine.cpu import NATIVE_ROWS
from sparseinfer.engine.parts import Parts, finish, pieces, within
from sparseinfer.engine.recall import RecallWindow
from sparseinfer.engine.runner import Runner
from sparseinfer.engine.settings import Phase
from sparseinfer.engine.torch_threads import torch_threads
from sparseinfer.packed import Weights
from sparseinfer.sparsity import SparsityCounts

CHUNK_TOKENS = 512
"""Prompts are computed this many tokens at a time, counted from their first one: that bounds the
memory of a long one, and how long others wait for it. The bits of a result depend on it."""


class Passes:
    """Runs tokens and counts. Not thread-safe.

    Args:
        weights: what the runner computes.
        threads: of torch, in prompts.
    """

    def __init__(self, runner: Runner, weights: Weights, threads: int) -> None:
        self.runner = runner
        self._weights = weights
        self._threads = threads
        self.reset()

    def use(self, weights: Weights) -> None:
        """Goes on with other weights of the same shape; counts start anew."""
        self.runner.set_weights(weights)
        self._weights = weights
        self.reset()

    def reset(self) -> None:
        """Sets all counts to zero."""
        layers = len(self._weights.layers)
        self.counters: dict[Phase, Counter] = {
            phase: Counter.zero(layers) for phase in get_args(Phase)
        }

    def counted(self, counter: Counter) -> SparsityCounts:
        """What a counter of these weights says."""
        return counter.counts(self._weights.input_thresholds, self._weights.candidate_reads)

    def prompt_parts(
        self, ids: torch.Tensor, cache: KVCache, *, all_logits: bool
    ) -> Parts[torch.Tensor]:
        """Appends ids [T] of a prompt, a part after the other (`Runner.forward_in_parts`); logits
        [1, V] of the last position, and before those of the others as pieces where all are
        wanted."""
        return (
            yield from self._forward(ids, cache, [self.counters["prefill"]], all_logits=all_logits)
        )

    def step(
        self, ids: Sequence[int], caches: Sequence[KVCache], recall: RecallWindow | None = None
    ) -> torch.Tensor:
        """One token for each of several sequences; logits [B, V].

        Args:
            recall: takes what the predictor loses on these tokens, where that is to be measured;
                neither the logits nor the counts depend on it.
        """
        if recall is None:
            logits, counts = self.runner.step(ids, caches)
        else:
            logits, counts, firing = self.runner.sampled_step(ids, caches)
            recall.add(counts, firing)
        self.counters["decode"].add(counts.sum(1), len(ids))
        return logits

    def last_logits(
        self, ids: torch.Tensor, cache: KVCache, decoded: Counter | None = None
    ) -> torch.Tensor:
        """Logits [V] behind ids [T], at least one, which are a prompt where the cache is empty.

        Args:
            decoded: counts of one text; tokens behind its prompt are counted there too.
        """
        counters = [self.counters["prefill" if cache.length == 0 else "decode"]]
        if decoded is not None and cache.length > 0:
            counters.append(decoded)
        logits = None
        for chunk in (ids,) if len(ids) == 1 else ids.split(CHUNK_TOKENS):
            logits = finish(self._forward(chunk, cache, counters))
        assert logits is not None  # `ids` is never empty
        return logits[0]

    def all_logits(self, ids: torch.Tensor, by: Phase) -> Iterator[torch.Tensor]:
        """Logits at all positions of ids [T] in order, some of them [., V] at a time."""
        counters = [self.counters[by]]
        cache = self.runner.new_cache()
        for chunk in ids.split(CHUNK_TOKENS if by == "prefill" else 1):
            yield (yield from pieces(self._forward(chunk, cache, counters, all_logits=True)))

    def _forward(
        self,
        ids: torch.Tensor,
        cache: KVCache,
        counters: Sequence[Counter],
        *,
        all_logits: bool = False,
    ) -> Parts[torch.Tensor]:
        logits, counts = yield from within(
            self.runner.forward_in_parts(ids, cache, all_logits=all_logits),
            partial(self._torch, ids.shape[0]),
        )
        for counter in counters:
            counter.add(counts, ids.shape[0])
        return logits

    @contextmanager
    def _torch(self, tokens: int) -> Iterator[None]:
        # In decode torch does only small operations between native kernels: its own threads would
        # spin on the cores that those need.
        threads = self._threads if tokens > NATIVE_ROWS else 1
        with torch_threads(threads), torch.inference_mode():
            yield
