"""Neurons of a layer that the CPU computes, for rows that are on a GPU.

    ask         on the GPU: the guide names candidates, x and they begin their way to the CPU
    mark        behind that
    compute     the CPU waits for the mark, and computes: what the GPU was given after the mark runs
                at the same time
    landed      on the GPU: the result has come back

`ask` and `landed` can be captured in a CUDA graph, `mark` and `compute` stand between graphs.

Without a guide the CPU reads what it needs to know which neurons fire: of gate-first weights all
gate rows. With one (`guide`) the GPU has read that, and the CPU reads rows of candidates alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparseinfer.kernels.exchange import Exchange
from sparseinfer.kernels.gated_ffn import FfnOutput, FfnWeights
from sparseinfer.kernels.gated_ffn.cpu import CpuGatedFfn
from sparseinfer.kernels.gated_ffn.guide import Guide, guided
from sparseinfer.kernels.threads import CpuPool


class ColdFfn:
    """A handle on neurons that stay on the CPU.

    Args:
        weights: on the CPU, of these neurons; kept alive, not copied.
        exchange: shared by all layers of a model.
        pool: threads to run on.
        guide: names candidates on the GPU, by the weights' own rule; None: the CPU does.
        isa: kernel variant; None takes the fastest available one.

    Results are as those of `CpuGatedFfn`; with a guide a neuron is computed where the GPU's
    rounding lets it through.

    Raises:
        ValueError: weights that are not on the CPU or do not run there by themselves (see
            `CpuGatedFfn`), in planes where there is a guide, or an `isa` that cannot run here.
        ImportError: the native kernels are not built.
    """

    def __init__(
        self,
        weights: FfnWeights,
        exchange: Exchange,
        pool: CpuPool,
        guide: Guide | None = None,
        isa: str | None = None,
    ) -> None:
        self.weights = weights
        self._exchange = exchange
        self._guide = guide
        self._neurons = 0 if guide is None else weights.intermediate
        self._op = CpuGatedFfn(weights if guide is None else guided(weights), pool, isa)

    def ask(self, x: Tensor) -> None:
        """Begins to send x [B, H] fp32, on the GPU; at most as many rows as the exchange takes.

        Raises:
            ValueError: more rows.
        """
        rows = x.shape[0]
        if rows > self._exchange.rows:
            raise ValueError(f"{rows} rows are more than the {self._exchange.rows} of the exchange")
        held, bits = self._exchange.question(rows, self._neurons)
        held.copy_(x)
        if self._guide is not None:
            self._guide(x, bits)
        self._exchange.send(rows, self._neurons)

    def mark(self) -> None:
        """Marks that the question of `ask` is sent, for `compute`."""
        self._exchange.mark()

    def compute(self, rows: int) -> None:
        """Waits for the question, and computes the answer."""
        self._exchange.wait()
        x, bits = self._exchange.question(rows, self._neurons, host=True)
        y, counts = self._exchange.answer(rows, host=True)
        self._op.into(x, y, counts, None if self._guide is None else bits)

    def landed(self, rows: int) -> FfnOutput:
        """The answer on the GPU, in memory that the next one takes."""
        self._exchange.fetch(rows)
        y, counts = self._exchange.answer(rows)
        inputs = None
        if self.weights.down_input is not None:
            nothing = torch.zeros_like(counts[:, 0])
            inputs = torch.stack([nothing, nothing, counts[:, 1]], 1)
        gates = counts[:, 2] if self.weights.chooses_candidates else None
        return FfnOutput(y, counts[:, :2], inputs, gates)


__all__ = ["ColdFfn"]
