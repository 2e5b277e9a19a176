"""What was read, counted per layer.

Runners return counts [L, 2], rows of up and of down, or, where any projection has thresholds on
its inputs or candidates are chosen, [L, 10]: also rows of gate, then the inputs of each of
`PROJECTIONS` that count (0 for those without thresholds).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sparseinfer.kernels.gated_ffn import FfnOutput
from sparseinfer.kernels.input_mask import PROJECTIONS
from sparseinfer.kernels.projection import ProjectionOutput
from sparseinfer.sparsity import CandidateReads, SparsityCounts


def layer_counts(attention: Sequence[ProjectionOutput], ffn: FfnOutput) -> torch.Tensor:
    """Counts of one layer over all rows of a call, int64 [2] or [10].

    Args:
        attention: of q, k, v and o; or of two matrices without thresholds.
    """
    rows = ffn.counts.sum(0)
    used = [one.used for one in attention]
    if ffn.inputs is None and ffn.gates is None and all(one is None for one in used):
        return rows
    if len(used) == len(PROJECTIONS) - 3:
        sums = torch.tensor([0 if one is None else int(one.sum()) for one in used])
    else:
        sums = torch.zeros(len(PROJECTIONS) - 3, dtype=torch.int64)
    inputs = torch.zeros_like(sums[:3]) if ffn.inputs is None else ffn.inputs.sum(0)
    gates = torch.zeros_like(sums[:1]) if ffn.gates is None else ffn.gates.sum()[None]
    return torch.cat((rows, gates, sums, inputs))


@dataclass
class Counter:
    """Counts so far, int64 [L, 10], and over how many tokens.

    In numpy: adding so few numbers takes it a tenth of the time that torch takes.
    """

    sums: np.ndarray
    tokens: int = 0

    @classmethod
    def zero(cls, layers: int) -> Counter:
        return cls(np.zeros((layers, 3 + len(PROJECTIONS)), dtype=np.int64))

    def copy(self) -> Counter:
        return Counter(self.sums.copy(), self.tokens)

    def add(self, counts: torch.Tensor, tokens: int) -> None:
        """Adds counts [L, 2] or [L, 10] of some tokens."""
        self.sums[:, : counts.shape[1]] += counts.numpy()
        self.tokens += tokens

    def counts(
        self, projections: Collection[str] = (), reads: CandidateReads | None = None
    ) -> SparsityCounts:
        """
        Args:
            projections: those that have thresholds on their inputs.
            reads: of what chooses candidates, where anything does.
        """
        up, down, gates, *inputs = (tuple(column) for column in self.sums.T.tolist())
        used = {
            name: column
            for name, column in zip(PROJECTIONS, inputs, strict=True)
            if name in projections
        }
        return SparsityCounts(self.tokens, up, down, used, gates if reads else None, reads)
