"""What a row costs in quality: perplexity on the same tokens for every side and state."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sparseinfer.bench.child import Child
from sparseinfer.bench.decode import Row
from sparseinfer.bench.protocol import Progress
from sparseinfer.bench.states import Ours, State


def measure_perplexity(
    ours: Ours,
    baselines: dict[str, Child],
    states: Sequence[State],
    rows: Sequence[Row],
    windows: Sequence[Sequence[int]],
    progress: Progress,
) -> None:
    """Sets `perplexity` of our rows (in the order of `states`) and of llama.cpp's."""
    for state, row in zip(states, rows, strict=False):
        child = ours.of(state)
        # A dense mode computes another activation to be timed; what it costs is by the model's own.
        child.call("set_thresholds", **{**state.arguments, "activation": None})
        row.perplexity = _perplexity(child, windows, f"{row.weights}: perplexity", progress)
    for row in rows:
        if row.side == "llama.cpp":
            child = baselines[row.side]
            row.perplexity = _perplexity(child, windows, f"{row.weights}: perplexity", progress)


def _perplexity(
    child: Child, windows: Sequence[Sequence[int]], what: str, progress: Progress
) -> float:
    losses, weights = [], []
    for done, window in enumerate(windows, start=1):
        losses += child.call("score", windows=[list(window)])
        weights.append(len(window) - 1)
        progress(what, done, len(windows))
    total = sum(loss * weight for loss, weight in zip(losses, weights, strict=True))
    return math.exp(total / sum(weights))
