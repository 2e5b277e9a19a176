"""What is kept of a model's run over one window of text."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sparseinfer.eval.perplexity import Totals
from sparseinfer.sparsity import CandidateReads, SparsityCounts


@dataclass(frozen=True)
class WindowScore:
    """One window under one choice of masks.

    Attributes:
        totals: quality, with the dense model's beside it.
        counts: what was read.
    """

    totals: Totals
    counts: SparsityCounts

    def to_json(self) -> dict[str, Any]:
        return {"totals": asdict(self.totals), "counts": asdict(self.counts)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> WindowScore:
        """
        Raises:
            KeyError, TypeError, AttributeError: not what `to_json` writes.
        """
        counts, reads = values["counts"], values["counts"]["reads"]
        gates = counts["gate_rows"]
        return cls(
            Totals(**values["totals"]),
            SparsityCounts(
                counts["tokens"],
                tuple(counts["up_rows"]),
                tuple(counts["down_rows"]),
                {name: tuple(used) for name, used in counts["inputs"].items()},
                None if gates is None else tuple(gates),
                reads and CandidateReads(**{**reads, "chooser": tuple(reads["chooser"])}),
            ),
        )


def gate_first(counts: SparsityCounts) -> SparsityCounts:
    """What a gate-first engine would read if it knew which neurons a mask on the inputs of down
    keeps: up and down of those."""
    kept = counts.inputs["down"]
    return SparsityCounts(counts.tokens, kept, kept)
