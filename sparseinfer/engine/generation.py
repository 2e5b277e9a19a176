"""The decode loop of one request, as an iterator of token ids."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Literal, Protocol

import torch

from sparseinfer.engine.sampling import Sampler
from sparseinfer.engine.torch_threads import torch_threads
from sparseinfer.sparsity import SparsityCounts


class Step(Protocol):
    """Appends token ids [T] to a sequence and returns the last position's logits [V]."""

    def __call__(self, ids: torch.Tensor) -> torch.Tensor: ...


class Generation(Iterator[int]):
    """Token ids as they are produced; figures of the run once they are.

    End-of-text ids end the iteration and are not yielded. Dropping the iterator ends the work.
    """

    def __init__(
        self,
        prompt: torch.Tensor,
        step: Step,
        sampler: Sampler,
        *,
        max_tokens: int,
        stop_ids: frozenset[int],
        decode_counts: Callable[[], SparsityCounts],
    ) -> None:
        self.prompt_tokens = int(prompt.shape[0])
        self.completion_tokens = 0
        self.finish_reason: Literal["stop", "length"] | None = None
        """None while tokens are still to come."""
        self.prefill_seconds = 0.0
        self.decode_seconds = 0.0
        self._pending = prompt
        self._step = step
        self._sampler = sampler
        self._max_tokens = max_tokens
        self._stop_ids = stop_ids
        self._decode_counts = decode_counts
        self._decode_steps = 0

    @property
    def decode_tokens_per_second(self) -> float | None:
        """Tokens per second after the first; None before there are two."""
        return self._decode_steps / self.decode_seconds if self._decode_steps else None

    @property
    def prefill_tokens_per_second(self) -> float | None:
        """Prompt tokens per second; None before the first token."""
        return self.prompt_tokens / self.prefill_seconds if self.prefill_seconds else None

    @property
    def sparsity(self) -> SparsityCounts:
        """Rows read by the decode steps of this generation alone."""
        return self._decode_counts()

    def __next__(self) -> int:
        if self.finish_reason is not None:
            raise StopIteration
        if self.completion_tokens >= self._max_tokens:
            self.finish_reason = "length"
            raise StopIteration
        began = time.perf_counter()
        with torch_threads(1):  # also for the sampler, which runs between two steps
            token = self._sampler(self._step(self._pending))
        seconds = time.perf_counter() - began
        if self.prefill_seconds == 0:
            self.prefill_seconds = seconds
        else:
            self.decode_seconds += seconds
            self._decode_steps += 1
        if token in self._stop_ids:
            self.finish_reason = "stop"
            raise StopIteration
        self._pending = torch.tensor([token])
        self.completion_tokens += 1
        return token
