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
from sparseinfer.kernels.gated_ffn.gpu_neurons import FfnTile, GpuNeurons
from sparseinfer.kernels.gpu_chooser import GpuChooser
from sparseinfer.kernels.input_mask import mask_inputs
from sparseinfer.kernels.lowrank import LowRank
from sparseinfer.kernels.lowrank.gpu import GpuLowRank
from sparseinfer.kernels.sign.gpu import GpuSign
from sparseinfer.kernels.sketch.gpu import GpuSketch


class GpuGatedFfn:
    """A handle on one layer's weights; call it with x [B, H] fp32.

    A predictor or sketch of the weights chooses the candidates.

    Args:
        weights: on a GPU; kept alive, not copied. Changing `threshold` in place takes effect at the
            next call.
        tile: how they are walked over; None takes the default for each
            batch.

    Two calls give the same bits; the last bits of a row's result may depend on the other rows of
    the batch, its mask does not. Nothing waits for the GPU, so that calls can be captured in a CUDA
    graph.

    Raises:
        ValueError: weights that are not on a GPU, or that need all gates first (top_k, or gate or
            up stored by input): `gpu_rules.gpu_ffn` runs those.
        UnsupportedError: a GPU that is too old.
    """

    def __init__(self, weights: FfnWeights, tile: FfnTile | None = None) -> None:
        if weights.needs_all_gates:
            raise ValueError("these weights need all gates first, see gpu_ffn")
        self.weights = weights
        self._chooser = _chooser(weights)
        # What a sketch lets through is computed whatever its gate is.
        self._threshold = weights.threshold.detach()
        if weights.sketch is not None:
            self._threshold = torch.zeros_like(self._threshold)
        self._neurons = GpuNeurons(weights, self._threshold, tile)

    def __call__(self, x: Tensor, candidates: Tensor | None = None) -> FfnOutput:
        """y [B, H] fp32 and counts for x [B, H] fp32, contiguous; any B, of which up to 8
        share a pass.

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
        if candidates is None:
            y, counts = self._neurons(up_x, None, "nothing", gate_x)
            return ffn_output(y, counts[:, :2], gate_used, up_used, self.weights)
        given = candidates.contiguous().view(torch.uint8)
        y, counts = self._neurons(up_x, given, "candidates", gate_x)
        return ffn_output(y, counts[:, :2], gate_used, up_used, self.weights, counts[:, 2])


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
