"""Throughput of sequences that are decoded together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sparseinfer.bench.child import Child, Children
from sparseinfer.bench.protocol import Entrant, Progress, alternate
from sparseinfer.bench.settings import Target
from sparseinfer.bench.spread import Spread, ratios
from sparseinfer.bench.states import Ours, State


def measure_batches(
    group: Children,
    ours: Ours,
    llama: Child | None,
    states: Sequence[State],
    prompts: Sequence[Sequence[int]],
    sizes: Sequence[int],
    *,
    steps: int,
    weights: str,
    pairs: int,
    progress: Progress,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Tokens per second of all sequences together, for each side, state and batch size.

    Sizes take turns within a round, so that each ratio to the smaller size is one of neighbours in
    time. Rows and warnings.
    """
    sides: list[tuple[str, Child, State | None]] = [("sparseinfer", ours.of(s), s) for s in states]
    if llama is not None:
        sides.append(("llama.cpp", llama, None))
    rows: list[dict[str, Any]] = []
    warnings: list[str] = []
    for side, child, state in sides:
        entrants = [_entrant(child, state, prompts[:size], steps) for size in sizes]
        entrants[-1].prepare()
        entrants[-1].run()
        what = f"{weights}: batches of {side}" + (f", {state.name}" if state else "")
        warnings += alternate(entrants, pairs, group, what=what, progress=progress)
        target: Target | None = state.target if state else None
        for index, (size, entrant) in enumerate(zip(sizes, entrants, strict=True)):
            over = {
                f"batch {sizes[other]}": asdict(ratios(entrant.results, entrants[other].results))
                for other in sorted({0, index - 1})
                if 0 <= other < index
            }
            rows.append(
                {
                    "side": side,
                    "weights": weights,
                    "target": target,
                    "rule": state.rule if state else None,
                    "batch": size,
                    "speed": asdict(Spread.of(entrant.results)),
                    "ratios": over,
                }
            )
    return rows, warnings


def _entrant(
    child: Child, state: State | None, prompts: Sequence[Sequence[int]], steps: int
) -> Entrant:
    batch = [list(prompt) for prompt in prompts]

    def prepare() -> None:
        if state is not None:
            child.call("set_thresholds", **state.arguments)

    def run() -> float:
        return len(batch) * steps / child.call("decode", prompts=batch, steps=steps)["seconds"]

    return Entrant(f"batch {len(batch)}", child, prepare, run)
