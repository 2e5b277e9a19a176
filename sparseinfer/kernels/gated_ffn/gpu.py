"""The gated FFN for decoding on a GPU: skipped rows stay unread."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseinfer.kernels.gated_ffn import (
    FfnOutput,
    FfnWeights,
    check_candidates,
    check_input,
    ffn_output,
)
from sparseinfer.kernels.gated_ffn.gpu_kernels import gate_neurons, list_candidates
from sparseinfer.kernels.gated_ffn.gpu_neurons import FfnTiles, GpuNeurons, or_unused
from sparseinfer.kernels.gpu_chooser import GpuChooser
from sparseinfer.kernels.gpu_gather import Segments
from sparseinfer.kernels.gpu_rows import MOST_ROWS, rows_of
from sparseinfer.kernels.input_mask import mask_inputs
from sparseinfer.kernels.lowrank import LowRank
from sparseinfer.kernels.lowrank.gpu import GpuLowRank
from sparseinfer.kernels.sign.gpu import GpuSign
from sparseinfer.kernels.sketch.gpu import GpuSketch
from sparseinfer.kernels.triton_language import triton


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
        ValueError: weights that are not on a GPU, or that need all gates first (top_k, or gate or
            up stored by input): `gpu_rules.gpu_ffn` runs those.
        UnsupportedError: a GPU that is too old.
    """

    def __init__(self, weights: FfnWeights, tiles: FfnTiles | None = None) -> None:
        if weights.needs_all_gates:
            raise ValueError("these weights need all gates first, see gpu_ffn")
        self.weights = weights
        self.tiles = tiles or FfnTiles.of(weights.hidden)
        self._gate = rows_of(weights.gate)
        self._chooser = _chooser(weights)
        # What a sketch lets through is computed whatever its gate is.
        self._threshold = weights.threshold.detach()
        if weights.sketch is not None:
            self._threshold = torch.zeros_like(self._threshold)
        self._neurons = GpuNeurons(weights, self._threshold, self.tiles)

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
        gate_x, gate_used = mask_inputs(x, self.weights.gate_input)
        up_x, up_used = mask_inputs(x, self.weights.up_input)
        y = torch.empty(x.shape, device=x.device)
        counts = torch.empty((x.shape[0], 3), dtype=torch.int64, device=x.device)
        for begin in range(0, x.shape[0], MOST_ROWS):
            rows = slice(begin, begin + MOST_ROWS)
            chosen = None if candidates is None else candidates[rows]
            self._block(gate_x[rows], up_x[rows], chosen, y[rows], counts[rows])
        gates = None if candidates is None else counts[:, 2]
        return ffn_output(y, counts[:, :2], gate_used, up_used, self.weights, gates)

    def _block(
        self, gate_x: Tensor, up_x: Tensor, candidates: Tensor | None, y: Tensor, counts: Tensor
    ) -> None:
        padded = triton.next_power_of_2(len(gate_x))
        activations = torch.empty((self.weights.intermediate, padded), device=gate_x.device)
        if candidates is None:
            listed = self._gate_first(gate_x, activations)
        else:
            candidates = candidates.contiguous().view(torch.uint8)
            listed = self._list(candidates)
        self._neurons(up_x, listed, activations, y, counts, candidates, gate_x)

    def _gate_first(self, x: Tensor, activations: Tensor) -> Segments:
        weights, tiles = self.weights, self.tiles
        listed = Segments.empty(weights.intermediate, tiles.segment, x.device)
        gate_neurons[(listed.number,)](
            x,
            *self._gate.arguments,
            or_unused(weights.gate_bias, x),
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
