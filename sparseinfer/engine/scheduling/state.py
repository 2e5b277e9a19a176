"""Figures of a scheduler, for whoever watches it."""

from __future__ import annotations

from dataclasses import dataclass

from sparseinfer.engine.recall import Recall
from sparseinfer.sparsity import SparsityCounts

WINDOW_TOKENS = 256
"""Tokens that `SchedulerState.recent` is about, at least, once there were so many."""


@dataclass(frozen=True)
class SchedulerState:
    """How things stood after the last step. Totals are since the scheduler was made."""

    slots: int
    prefilling: int
    """Requests in a slot whose prompt is being computed."""
    decoding: int
    """Requests in a slot that produce tokens."""
    waiting: int
    """Requests without a slot."""
    finished: int
    """Requests that came to their end,"""
    failed: int
    cancelled: int
    prompt_tokens: int
    """Tokens of prompts that were computed,"""
    cached_tokens: int
    """and those that were reused."""
    completion_tokens: int
    """Tokens handed to sinks."""
    prefill: SparsityCounts
    """What prompts read, and"""
    decode: SparsityCounts
    """what decoding read, since the model was loaded or its counts were reset; `dense` requests of
    a converted model not included."""
    recent: SparsityCounts
    """The part of `decode` of about the last `WINDOW_TOKENS` tokens."""
    recall: Recall | None = None
    """What the predictor lets through of about the last `WINDOW_TOKENS` tokens that were sampled;
    None where none ever is."""
