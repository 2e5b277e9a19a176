"""What listed neurons of a gated FFN put out, on a GPU."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sparseinfer.kernels.gated_ffn import FfnWeights
from sparseinfer.kernels.gated_ffn.gpu_kernels import gather_neurons
from sparseinfer.kernels.gpu_gather import GatherTile, Segments, accumulate, total
from sparseinfer.kernels.gpu_rows import GROUP, RowTile, rows_of
from sparseinfer.kernels.triton_language import processors, triton


@dataclass(frozen=True)
class FfnTiles:
    """How the kernels of one layer walk over its weights.

    Args:
        gate: over rows of the gate, gate-first.
        segment: neurons that one program computes the gates of, a power of two, at least
            `gate.rows`.
        neuron: over rows of listed neurons.
        per_processor: programs that share them, for each multiprocessor.
        fused: sums of down that a program keeps in registers at most; beyond that, down has a
            kernel of its own.
        down: of that kernel.
        candidates: neurons that one program looks for candidates among, a power of two.
    """

    gate: RowTile
    segment: int
    neuron: RowTile
    per_processor: int = 2
    fused: int = 8192
    down: GatherTile = field(default_factory=GatherTile)
    candidates: int = 128

    @classmethod
    def of(cls, hidden: int) -> FfnTiles:
        """The default for so many columns."""
        gate = RowTile.of(hidden)
        warps = 8 if gate.groups >= 128 else 4
        # At a density of 0.1, an H200's programs have about as many neurons as one tile takes.
        neuron = RowTile(rows=8, groups=gate.groups, warps=warps, stages=gate.stages)
        return cls(gate=gate, segment=32, neuron=neuron)


class GpuNeurons:
    """Up and down of one layer, and the gate where it is computed for candidates alone.

    Args:
        weights: on a GPU; up stored by output. Kept alive, not copied.
        threshold: [I] fp32 on |a|, applied to candidates.
        tiles: how they are walked over.

    Raises:
        ValueError: weights that are not on a GPU.
        UnsupportedError: a GPU that is too old.
    """

    def __init__(self, weights: FfnWeights, threshold: Tensor, tiles: FfnTiles) -> None:
        self._weights, self._threshold, self._tiles = weights, threshold, tiles
        self._up, self._down = rows_of(weights.up), rows_of(weights.down)
        # A gate that is stored by input has no rows of neurons; nothing asks for them then.
        self._gate = self._up if weights.gate_by_input else rows_of(weights.gate)
        self._programs = tiles.per_processor * processors(weights.gate.device)

    def __call__(
        self,
        x: Tensor,
        listed: Segments,
        activations: Tensor,
        y: Tensor,
        counts: Tensor,
        candidates: Tensor | None = None,
        gate_x: Tensor | None = None,
    ) -> None:
        """Adds up what the listed neurons put out.

        Args:
            x: [B, H] fp32, at most 16 rows: what up multiplies.
            listed: neurons that any row needs.
            activations: fp32 [I, padded B], a of the listed neurons, 0 where a row drops one. With
                candidates memory to work in.
            y: fp32 [B, H], where the sums go.
            counts: int64 [B, 3], where the numbers of neurons kept, of those with h != 0, and of
                candidates go.
            candidates: uint8 [B, I]; their gates are computed.
            gate_x: [B, H] fp32, what these multiply; None: x.
        """
        batch, hidden = x.shape
        found = torch.empty((self._programs, batch, 3), dtype=torch.int32, device=x.device)
        columns = triton.next_power_of_2(triton.cdiv(hidden, GROUP.value)) * GROUP.value
        gate_x = x if gate_x is None else gate_x
        if activations.shape[1] * columns <= self._tiles.fused:
            partial = torch.empty((self._programs, batch, hidden), device=x.device)
            self._gather(gate_x, x, listed, candidates, activations, found, partial)
        else:
            self._gather(gate_x, x, listed, candidates, activations, found, None)
            partial = accumulate(activations, listed, self._down, batch, self._tiles.down)
        total(partial, self._weights.down_bias, found, y, counts)

    def _gather(
        self,
        gate_x: Tensor,
        x: Tensor,
        listed: Segments,
        candidates: Tensor | None,
        activations: Tensor,
        counts: Tensor,
        partial: Tensor | None,
    ) -> None:
        """Adds up down in `partial` [programs, B, H], or leaves h in `activations`."""
        weights, tile = self._weights, self._tiles.neuron
        groups = triton.next_power_of_2(triton.cdiv(weights.hidden, GROUP.value))
        gather_neurons[(self._programs,)](
            gate_x,
            x,
            listed.index,
            listed.counts,
            listed.number,
            or_unused(candidates, x),
            activations,
            *self._gate.arguments,
            or_unused(weights.gate_bias, x),
            self._threshold,
            *self._up.arguments,
            or_unused(weights.up_bias, x),
            *self._down.arguments,
            or_unused(weights.down_input, x),
            or_unused(partial, x),
            counts,
            weights.intermediate,
            weights.hidden,
            PHI=weights.phi,
            PSI=weights.psi,
            GATES=candidates is not None,
            GATE_BIASED=weights.gate_bias is not None,
            UP_BIASED=weights.up_bias is not None,
            DOWN_INPUT=weights.down_input is not None,
            DOWN=partial is not None,
            BATCH=x.shape[0],
            PADDED=activations.shape[1],
            ROWS=tile.rows,
            GROUPS=tile.groups,
            DOWN_GROUPS=groups if partial is not None else 1,
            STAGES=tile.stages,
            SEGMENT=listed.size,
            SEGMENTS=listed.padded,
            KIND=self._up.kind,
            DOWN_KIND=self._down.kind,
            num_warps=tile.warps,
        )


def or_unused(tensor: Tensor | None, unused: Tensor) -> Tensor:
    """Kernels take a pointer also where they use none."""
    return unused if tensor is None else tensor
