"""Greedy or sampled continuation of several prompts at once: weights are read once for all."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from sparseinfer.engine.cache import KVCache
from sparseinfer.engine.sampling import Sampler
from sparseinfer.kernels.decoder.cpu import MAX_ROWS

Prefill = Callable[[torch.Tensor, KVCache], torch.Tensor]
"""Stores a prompt [T] in an empty cache and returns the logits [V] of its last position."""

Step = Callable[[Sequence[int], Sequence[KVCache]], torch.Tensor]
"""Appends one token to each of several sequences and returns their logits [B, V]."""


@dataclass
class _Sequence:
    prompt: torch.Tensor
    room: int
    """Tokens that may still be produced."""
    sampler: Sampler
    tokens: list[int] = field(default_factory=list)

    def take(self, logits: torch.Tensor, stop_ids: frozenset[int]) -> bool:
        """Adds the next token; says whether the sequence goes on."""
        token = self.sampler(logits)
        if token in stop_ids:
            return False
        self.tokens.append(token)
        self.room -= 1
        return self.room > 0


def generate_batch(
    prompts: Sequence[torch.Tensor],
    room: Sequence[int],
    samplers: Sequence[Sampler],
    stop_ids: frozenset[int],
    *,
    new_cache: Callable[[], KVCache],
    prefill: Prefill,
    step: Step,
) -> list[list[int]]:
    """Continues each prompt by at most `room` tokens; ids that end a text are not in the result.

    At most `MAX_ROWS` sequences run at a time: when one ends, the next waiting prompt takes its
    place.
    """
    everything = [
        _Sequence(prompt, most, sampler)
        for prompt, most, sampler in zip(prompts, room, samplers, strict=True)
    ]
    waiting = deque(everything)
    # A cache lives only while its sequence runs: that bounds the memory of a long list of prompts.
    running: list[tuple[_Sequence, KVCache]] = []
    while waiting or running:
        while waiting and len(running) < MAX_ROWS:
            one, cache = waiting.popleft(), new_cache()
            if one.take(prefill(one.prompt, cache), stop_ids):
                running.append((one, cache))
        if not running:
            continue
        logits = step([one.tokens[-1] for one, _ in running], [cache for _, cache in running])
        running = [
            pair for pair, row in zip(running, logits, strict=True) if pair[0].take(row, stop_ids)
        ]
    return [one.tokens for one in everything]
