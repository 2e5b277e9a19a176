"""The neurons of a gated FFN on a GPU: one pass over those that are wanted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from sparseinfer.kernels.gated_ffn import FfnWeights
from sparseinfer.kernels.gated_ffn.gpu_kernels import compute_neurons
from sparseinfer.kernels.gpu_gather import shares, total
from sparseinfer.kernels.gpu_rows import MOST_ROWS, rows_of
from sparseinfer.kernels.sparse_input_linear.gpu import GatherTile, sum_inputs

Given = Literal["nothing", "candidates", "activations"]


@dataclass(frozen=True)
class FfnTile:
    """How the kernel of one layer walks over its weights.

    Args:
        rows: of a tile, a power of two.
        columns: of a tile at most, a power of two from 64 on.
        warps: of a program, a power of two.
        per_processor: programs for each multiprocessor.
        sums: of down that a program keeps in registers at most.
        down: where they are more.
    """

    rows: int = 8
    columns: int = 4096
    warps: int = 8
    per_processor: int = 2
    sums: int = 10 << 10
    down: GatherTile = field(default_factory=GatherTile)

    @classmethod
    def of(cls, batch: int) -> FfnTile:
        """The default for so many rows of x: tiles take registers, and so do sums of each row."""
        return cls() if batch == 1 else cls(rows=4, columns=2048)


class GpuNeurons:
    """One layer's weights; up is stored by output, and so is the gate where it is computed here.

    Args:
        weights: on a GPU; kept alive, not copied.
        threshold: [I] fp32 on |a|, for gates computed here.
        tile: how they are walked over; None takes the default for each batch.

    Raises:
        ValueError: weights that are not on a GPU.
        UnsupportedError: a GPU that is too old.
    """

    def __init__(self, weights: FfnWeights, threshold: Tensor, tile: FfnTile | None) -> None:
        self._weights, self._threshold, self._tile = weights, threshold, tile
        self._up, self._down = rows_of(weights.up), rows_of(weights.down)
        # A gate that is stored by input has no rows of neurons; nobody asks for them then.
        self._gate = self._up if weights.gate_by_input else rows_of(weights.gate)

    def __call__(
        self, x: Tensor, given: Tensor | None, kind: Given, gate_x: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What neurons put out, and how many did.

        Args:
            x: [B, H] fp32, contiguous, what up multiplies; any B.
            given: [B, I], contiguous: candidates uint8, whose gates are computed; activations fp32,
                0 where a neuron does not fire; None: all gates are computed.
            kind: which of these it is.
            gate_x: [B, H] fp32, contiguous, what the gate multiplies.

        Returns:
            y [B, H] fp32, and int64 [B, 3]: neurons kept, of those with h != 0, and candidates.
        """
        y = torch.empty(x.shape, device=x.device)
        counts = torch.empty((x.shape[0], 3), dtype=torch.int64, device=x.device)
        for begin in range(0, x.shape[0], MOST_ROWS):
            rows = slice(begin, begin + MOST_ROWS)
            chosen = x if given is None else given[rows]
            self._pass(x[rows], chosen, kind, gate_x[rows], y[rows], counts[rows])
        return y, counts

    def _pass(
        self, x: Tensor, given: Tensor, kind: Given, gate_x: Tensor, y: Tensor, counts: Tensor
    ) -> None:
        weights = self._weights
        batch, hidden = x.shape
        tile = self._tile or FfnTile.of(batch)
        down_parts = self._down.parts(tile.columns)
        fused = batch * sum(part.width for part in down_parts) <= tile.sums
        programs, own = shares(weights.intermediate, tile.per_processor, x)
        shape = (programs, batch, hidden) if fused else (batch, weights.intermediate)
        out = torch.empty(shape, device=x.device)
        found = torch.empty((programs, batch, 3), dtype=torch.int32, device=x.device)
        compute_neurons[(programs,)](
            gate_x,
            x,
            given,
            *self._gate.arguments,
            _or(weights.gate_bias, x),
            self._threshold,
            *self._up.arguments,
            _or(weights.up_bias, x),
            *self._down.arguments,
            _or(weights.down_input, x),
            out,
            found,
            weights.intermediate,
            PHI=weights.phi,
            PSI=weights.psi,
            GIVEN=kind,
            ONE_X=gate_x.data_ptr() == x.data_ptr(),
            GATE_BIASED=weights.gate_bias is not None,
            UP_BIASED=weights.up_bias is not None,
            DOWN_INPUT=weights.down_input is not None,
            DOWN=fused,
            BATCH=batch,
            ROWS=tile.rows,
            OWN=own,
            PARTS=self._up.parts(tile.columns),
            DOWN_PARTS=down_parts,
            COLUMNS=hidden,
            KIND=self._up.kind,
            DOWN_KIND=self._down.kind,
            num_warps=tile.warps,
        )
        partial = out if fused else sum_inputs(out, None, self._down, tile.down)[0]
        total(partial, weights.down_bias, found, y, counts)


def _or(tensor: Tensor | None, unused: Tensor) -> Tensor:
    """Kernels take a pointer also where they use none."""
    return unused if tensor is None else tensor.detach()
