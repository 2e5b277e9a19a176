"""The gated FFN on a GPU, whatever its rules are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sparseinfer.kernels.gated_ffn import FfnOutput, FfnWeights, check_input, ffn_output
from sparseinfer.kernels.gated_ffn.activations import activation, up_activation
from sparseinfer.kernels.gated_ffn.gpu import GpuGatedFfn
from sparseinfer.kernels.gated_ffn.gpu_neurons import FfnTile, GpuNeurons
from sparseinfer.kernels.gated_ffn.reference import kept
from sparseinfer.kernels.input_mask import mask_inputs
from sparseinfer.kernels.projection.gpu import GpuProjection
from sparseinfer.kernels.top_k import among_largest


def gpu_ffn(weights: FfnWeights, tile: FfnTile | None = None) -> Callable[[Tensor], FfnOutput]:
    """A handle on one layer's weights, whatever chooses its neurons; call it with x [B, H] fp32.

    Arguments, promises and what a call raises as in `GpuGatedFfn`, which is returned where it will
    do.

    Raises:
        ValueError: weights that are not on a GPU.
        UnsupportedError: a GPU that is too old.
    """
    return (GpuAllGates if weights.needs_all_gates else GpuGatedFfn)(weights, tile)


class GpuAllGates:
    """Where the mask depends on all gate values of a row, or gate or up is stored by input.

    Arguments and promises as in `GpuGatedFfn`.
    """

    def __init__(self, weights: FfnWeights, tile: FfnTile | None = None) -> None:
        self.weights = weights
        self._gate = GpuProjection(weights.gate_projection)
        self._threshold = weights.threshold.detach()
        self._rest = _ByInput(weights) if weights.up_by_input else _ByNeuron(weights, tile)

    def __call__(self, x: Tensor) -> FfnOutput:
        """y [B, H] fp32 and counts for x [B, H] fp32, contiguous; any B.

        Raises:
            ValueError: `x` has the wrong shape, dtype, device or layout.
        """
        weights = self.weights
        check_input(x, weights)
        g, gate_used = self._gate(x)
        a = activation(weights.phi, g)
        a = torch.where(kept(a, self._threshold), a, 0.0)
        if weights.top_k is not None:
            a = torch.where(among_largest(a, weights.top_k), a, 0.0)
        y, counts, up_used = self._rest(x, a)
        return ffn_output(y, counts, gate_used, up_used, weights)


class _ByNeuron:
    """Rows of up and down of the neurons that fire."""

    def __init__(self, weights: FfnWeights, tile: FfnTile | None) -> None:
        self._threshold = weights.up_input
        self._neurons = GpuNeurons(weights, weights.threshold, tile)

    def __call__(self, x: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """y [B, H], counts [B, 2] and inputs of up that count [B], of x and a [B, I], 0 where a
        neuron does not fire."""
        x, used = mask_inputs(x, self._threshold)
        y, counts = self._neurons(x, a, "activations", x)
        return y, counts[:, :2], used


class _ByInput:
    """Up row by row of its inputs, so that all of u is there, and then down row by row of h."""

    def __init__(self, weights: FfnWeights) -> None:
        self._psi = weights.psi
        self._up = GpuProjection(weights.up_projection)
        self._down = GpuProjection(weights.down_projection)

    def __call__(self, x: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """As `_ByNeuron`."""
        u, used = self._up(x)
        keep = a != 0
        h = torch.where(keep, a * up_activation(self._psi, u), 0.0)
        y, down_used = self._down(h)
        live = (h != 0).sum(1) if down_used is None else down_used
        return y, torch.stack((keep.sum(1), live), 1), used
