"""What the benchmark asks of an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class DecodeRun:
    """One timed greedy decode."""

    seconds: float
    """Of the `steps` decode steps alone: neither the prompt nor the first token."""
    steps: int
    """Decode steps; each reads the model once and yields one token per sequence."""
    ids: list[list[int]]
    """Tokens of each sequence, the untimed first one included: steps + 1 of them."""
    up_rows: list[int] | None = None
    """Rows of up (of down) that were read in each layer, summed over steps and sequences; None
    where the engine reads all of them."""
    down_rows: list[int] | None = None
    inputs: dict[str, list[int]] | None = None
    """Inputs that counted, likewise, of projections with thresholds on them."""
    gate_rows: list[int] | None = None
    """Rows of gate that were read, likewise; None where all are."""
    reads: dict[str, Any] | None = None
    """Fields of `sparsity.CandidateReads`, where a predictor or a sketch chooses."""


class Side(Protocol):
    """A loaded model. Nothing of it may use the processor between calls."""

    def describe(self) -> dict[str, Any]:
        """Versions, weights, threads: whatever a reader needs to repeat the measurement."""
        ...

    def decode(self, prompts: Sequence[Sequence[int]], steps: int) -> DecodeRun:
        """Greedy decode after prompts of one length, the sequences of a batch together."""
        ...

    def prefill(self, ids: Sequence[int]) -> float:
        """Seconds from token ids to the logits of the last one, in an empty context."""
        ...
