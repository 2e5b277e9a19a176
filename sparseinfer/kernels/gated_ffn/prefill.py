"""The gated FFN for prompts: matrix products on oneDNN, and the same mask as in decoding."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseinfer.kernels.gated_ffn import (
    PHI,
    PSI,
    FfnOutput,
    FfnWeights,
    check_input,
    ffn_output,
)
from sparseinfer.kernels.gated_ffn.activations import activation, up_activation
from sparseinfer.kernels.gated_ffn.block_chooser import BlockChooser
from sparseinfer.kernels.gated_ffn.reference import kept
from sparseinfer.kernels.gemm import Gemm, blocks
from sparseinfer.kernels.input_mask import mask_inputs
from sparseinfer.kernels.isa import native
from sparseinfer.kernels.projection.prefill import project


def gated_ffn(x: Tensor, weights: FfnWeights, gemm: Gemm) -> FfnOutput:
    """The function of `sparseinfer.kernels.gated_ffn`, dense.

    Args:
        x: [T, H] fp32, contiguous, on the CPU; any number of rows.
        weights: in any format; unpacked a block of neurons at a time where `gemm` needs it.
        gemm: the arithmetic of the three matrix products, and memory to work in. phi, psi, masks
            and the sum over blocks of neurons are fp32 in any case.

    Returns:
        y [T, H] fp32 and counts [T, 2] int64, the rows a sparse kernel would read. h is exactly 0
        for a neuron that is not kept, even where u is inf or NaN; the rows of `down` are all
        multiplied, so they must be finite.

    Raises:
        ValueError: `x` has the wrong shape, dtype, device or layout.
    """
    check_input(x, weights)
    if weights.needs_all_gates:
        return _from_all_gates(x, weights, gemm)
    if weights.chooses_candidates:
        return _of_candidates(x, weights, gemm)
    gate_x, gate_used = mask_inputs(x, weights.gate_input)
    up_x, up_used = mask_inputs(x, weights.up_input)
    gate_operand = gemm.operand(gate_x, "gate")
    up_operand = gate_operand if up_x is gate_x else gemm.operand(up_x, "up")
    y = torch.zeros(x.shape)
    counts = torch.zeros(x.shape[0], 2, dtype=torch.int64)
    for begin, end in blocks(weights.intermediate, weights.hidden):
        g = gemm.times_transposed(gate_operand, gemm.weights(weights.gate, begin, end), "g")
        u = gemm.times_transposed(up_operand, gemm.weights(weights.up, begin, end), "u")
        h = _gate(g, u, weights, begin, end, counts, gemm)
        y += gemm.times(h, gemm.weights(weights.down, begin, end), "y")
    if weights.down_bias is not None:
        y += weights.down_bias
    return ffn_output(y, counts, gate_used, up_used, weights)


def _of_candidates(x: Tensor, weights: FfnWeights, gemm: Gemm) -> FfnOutput:
    """Where a predictor or a sketch chooses neurons; it does so in fp32, whatever `gemm` is."""
    operand = gemm.operand(x, "gate")
    chooser = BlockChooser(x, weights, gemm)
    y = torch.zeros(x.shape)
    counts = torch.zeros(x.shape[0], 3, dtype=torch.int64)
    for begin, end in blocks(weights.intermediate, weights.hidden):
        chosen = chooser(begin, end)
        g = gemm.times_transposed(operand, gemm.weights(weights.gate, begin, end), "g").float()
        u = gemm.times_transposed(operand, gemm.weights(weights.up, begin, end), "u").float()
        if weights.gate_bias is not None:
            g += weights.gate_bias[begin:end]
        if weights.up_bias is not None:
            u += weights.up_bias[begin:end]
        a = activation(weights.phi, g)
        if weights.sketch is None:
            keep = chosen & kept(a, weights.threshold[begin:end])
        else:
            keep = chosen & ~(a == 0)
        h = torch.where(keep, a * up_activation(weights.psi, u), 0.0)
        counts += torch.stack((keep.sum(1), (h != 0).sum(1), chosen.sum(1)), 1)
        y += gemm.times(gemm.operand(h, "h"), gemm.weights(weights.down, begin, end), "y")
    if weights.down_bias is not None:
        y += weights.down_bias
    rows, gates = counts.split((2, 1), 1)
    return ffn_output(y, rows.contiguous(), None, None, weights, gates[:, 0])


def _from_all_gates(x: Tensor, weights: FfnWeights, gemm: Gemm) -> FfnOutput:
    """Where a block of neurons cannot go on alone: its gate or up values are sums over inputs, or
    the mask depends on all gate values of a row."""
    g, gate_used = project(x, weights.gate_projection, gemm)
    a = activation(weights.phi, g)
    a = torch.where(kept(a, weights.threshold), a, 0.0)
    if weights.top_k is not None:
        rows, neurons = a.shape
        native().keep_largest(a.data_ptr(), rows, neurons, weights.top_k, gemm.pool.native)
    keep = a != 0
    u, up_used = project(x, weights.up_projection, gemm)
    h = torch.where(keep, a * up_activation(weights.psi, u), 0.0)
    y, down_used = project(h, weights.down_projection, gemm)
    down_rows = (h != 0).sum(1) if down_used is None else down_used
    return ffn_output(y, torch.stack((keep.sum(1), down_rows), 1), gate_used, up_used, weights)


def _gate(
    g: Tensor,
    u: Tensor,
    weights: FfnWeights,
    begin: int,
    end: int,
    counts: Tensor,
    gemm: Gemm,
) -> Tensor:
    """h [T, end - begin] of products without bias, in place of `g`; adds to `counts`."""

    def address(vector: Tensor | None) -> int:
        return 0 if vector is None else vector[begin:end].data_ptr()

    native().gate(
        g.data_ptr(),
        u.data_ptr(),
        gemm.math == "bf16",
        address(weights.threshold),
        address(weights.gate_bias),
        address(weights.up_bias),
        address(weights.down_input),
        end - begin,
        PHI.index(weights.phi),
        PSI.index(weights.psi),
        counts.data_ptr(),
        g.shape[0],
        gemm.pool.native,
        gemm.isa,
    )
    return g
