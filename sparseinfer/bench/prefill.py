"""Speed of reading a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sparseinfer.bench.child import Child, Children
from sparseinfer.bench.protocol import Entrant, Progress, alternate
from sparseinfer.bench.spread import Spread, ratios


def measure_prefill(
    group: Children,
    sides: dict[str, Child],
    prompt: Sequence[int],
    *,
    weights: str,
    pairs: int,
    progress: Progress,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Alternates the sides, ours ("sparseinfer") dense, on one prompt; rows and warnings."""
    ids = list(prompt)

    def entrant(name: str, child: Child) -> Entrant:
        def prepare() -> None:
            if name == "sparseinfer":
                child.call("set_dense")

        return Entrant(name, child, prepare, lambda: len(ids) / child.call("prefill", ids=ids))

    entrants = [entrant(name, child) for name, child in sides.items()]
    for one in entrants:
        one.prepare()
        one.run()
    warnings = alternate(entrants, pairs, group, what=f"{weights}: prompts", progress=progress)
    ours = entrants[0].results
    rows = [
        {
            "side": one.name,
            "weights": weights,
            "tokens": len(ids),
            "speed": asdict(Spread.of(one.results)),
            "ratios": {other.name: asdict(ratios(ours, other.results)) for other in entrants[1:]}
            if one is entrants[0]
            else {},
        }
        for one in entrants
    ]
    return rows, warnings
