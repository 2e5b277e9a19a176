"""The gated FFN for decoding on a GPU: skipped rows stay unread."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sparseinfer.kernels.gated_ffn import (
    FfnOutput,
    FfnWeights,
    check_candidates,
    check_input,
    ffn_output,
)
from sparseinfer.kernels.gated_ffn.gpu_kernels import (
    gate_neurons,
    gather_neurons,
    list_candidates,
)
from sparseinfer.kernels.gpu_chooser import GpuChooser
from sparseinfer.kernels.gpu_gather import GatherTile, Segments, accumulate, total
from sparseinfer.kernels.gpu_rows import GROUP, MOST_ROWS, RowTile, rows_of
from sparseinfer.kernels.lowrank import LowRank
from sparseinfer.kernels.lowrank.gpu import GpuLowRank
from sparseinfer.kernels.sign.gpu import GpuSign
from sparseinfer.kernels.sketch.gpu import GpuSketch
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


class GpuGatedFfn:
    """A handle on one layer's weights; call it with x [B, H] fp32.

    A predictor or sketch of the weights chooses the candidates.

    Args:
        weights: on a GPU; kept alive, not copied. Changing `threshold` in place takes effect at the
            next call.
        tiles: how they are walked over; None takes the default for H.

    Two calls give the same bits; the last bits of a row's result may depend on the other rows of
    the batch, its mask does not. Nothing waits for the GPU, so that calls can be captured in a CUDA
    graph.

    Raises:
        ValueError: weights that are not on a GPU, or that need all gates or inputs first (stored by
            input, with thresholds on the inputs of gate or up, or top_k).
        UnsupportedError: a GPU that is too old.
    """

    def __init__(self, weights: FfnWeights, tiles: FfnTiles | None = None) -> None:
        thresholds = (weights.gate_input, weights.up_input)
        if weights.needs_all_gates or any(one is not None for one in thresholds):
            raise ValueError("these weights do not run on a GPU: they need all gates first")
        self.weights = weights
        self.tiles = tiles or FfnTiles.of(weights.hidden)
        self._gate, self._up = rows_of(weights.gate), rows_of(weights.up)
        self._down = rows_of(weights.down)
        self._programs = self.tiles.per_processor * processors(weights.gate.device)
        self._chooser = _chooser(weights)
        # What a sketch lets through is computed whatever its gate is.
        self._threshold = weights.threshold.detach()
        if weights.sketch is not None:
            self._threshold = torch.zeros_like(self._threshold)

    def __call__(self, x: Tensor, candidates: Tensor | None = None) -> FfnOutput:
        """y [B, H] fp32 and counts for x [B, H] fp32, contiguous; any B, of which 16 share a pass.

        Args:
            candidates: bool [B, I], neurons to consider, in place of a predictor: no row of the
                others is read.

        Raises:
            ValueError: `x` or `candidates` has the wrong shape, dtype, device or layout, or these
                weights take no candidates.
        """
        check_input(x, self.weights)
        check_candidates(candidates, x, self.weights)
        if self._chooser is not None:
            candidates = self._chooser(x)
        y = torch.empty(x.shape, device=x.device)
        counts = torch.empty((x.shape[0], 3), dtype=torch.int64, device=x.device)
        for begin in range(0, x.shape[0], MOST_ROWS):
            end = min(begin + MOST_ROWS, x.shape[0])
            chosen = None if candidates is None else candidates[begin:end]
            self._block(x[begin:end], chosen, y[begin:end], counts[begin:end])
        gates = None if candidates is None else counts[:, 2]
        return ffn_output(y, counts[:, :2], None, None, self.weights, gates)

    def _block(self, x: Tensor, candidates: Tensor | None, y: Tensor, counts: Tensor) -> None:
        weights, tiles = self.weights, self.tiles
        batch = x.shape[0]
        padded = triton.next_power_of_2(batch)
        activations = torch.empty((weights.intermediate, padded), device=x.device)
        if candidates is None:
            listed = self._gate_first(x, activations)
        else:
            candidates = candidates.contiguous().view(torch.uint8)
            listed = self._list(candidates)
        found = torch.empty((self._programs, batch, 3), dtype=torch.int32, device=x.device)
        columns = triton.next_power_of_2(triton.cdiv(weights.hidden, GROUP.value)) * GROUP.value
        if padded * columns <= tiles.fused:
            partial = torch.empty((self._programs, batch, weights.hidden), device=x.device)
            self._gather(x, listed, candidates, activations, found, partial)
        else:
            self._gather(x, listed, candidates, activations, found, None)
            partial = accumulate(activations, listed, self._down, batch, tiles.down)
        total(partial, weights.down_bias, found, y, counts)

    def _gate_first(self, x: Tensor, activations: Tensor) -> Segments:
        weights, tiles = self.weights, self.tiles
        listed = Segments.empty(weights.intermediate, tiles.segment, x.device)
        gate_neurons[(listed.number,)](
            x,
            *self._gate.arguments,
            _or(weights.gate_bias, x),
            self._threshold,
            activations,
            listed.index,
            listed.counts,
            weights.intermediate,
            weights.hidden,
            PHI=weights.phi,
            BIASED=weights.gate_bias is not None,
            BATCH=x.shape[0],
            PADDED=activations.shape[1],
            ROWS=tiles.gate.rows,
            GROUPS=tiles.gate.groups,
            STAGES=tiles.gate.stages,
            SEGMENT=tiles.segment,
            KIND=self._gate.kind,
            num_warps=tiles.gate.warps,
        )
        return listed

    def _list(self, candidates: Tensor) -> Segments:
        batch, neurons = candidates.shape
        listed = Segments.empty(neurons, self.tiles.candidates, candidates.device)
        list_candidates[(listed.number,)](
            candidates,
            listed.index,
            listed.counts,
            neurons,
            BATCH=batch,
            PADDED=triton.next_power_of_2(batch),
            SEGMENT=listed.size,
            num_warps=4,
        )
        return listed

    def _gather(
        self,
        x: Tensor,
        listed: Segments,
        candidates: Tensor | None,
        activations: Tensor,
        counts: Tensor,
        partial: Tensor | None,
    ) -> None:
        """Adds up down in `partial` [programs, B, H], or leaves h in `activations`."""
        weights, tile = self.weights, self.tiles.neuron
        groups = triton.next_power_of_2(triton.cdiv(weights.hidden, GROUP.value))
        gather_neurons[(self._programs,)](
            x,
            listed.index,
            listed.counts,
            listed.number,
            _or(candidates, x),
            activations,
            *self._gate.arguments,
            _or(weights.gate_bias, x),
            self._threshold,
            *self._up.arguments,
            _or(weights.up_bias, x),
            *self._down.arguments,
            _or(weights.down_input, x),
            _or(partial, x),
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


def _chooser(weights: FfnWeights) -> GpuChooser | None:
    """What names candidates before the gate is read; None where nothing does."""
    if weights.sketch is not None:
        return GpuSketch(
            weights.sketch,
            weights.threshold,
            phi=weights.phi,
            psi=weights.psi,
            gate_bias=weights.gate_bias,
            up_bias=weights.up_bias,
        )
    if weights.predictor is None:
        return None
    if isinstance(weights.predictor, LowRank):
        return GpuLowRank(weights.predictor)
    return GpuSign(weights.predictor)


def _or(tensor: Tensor | None, unused: Tensor) -> Tensor:
    """Kernels take a pointer also where they use none."""
    return unused if tensor is None else tensor
