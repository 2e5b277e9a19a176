"""The gated FFN for prompts: matrix products on oneDNN, and the same mask as in decoding."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseinfer.kernels.gated_ffn import PHI, PSI, FfnOutput, FfnWeights, check_input
from sparseinfer.kernels.gemm import Gemm, blocks
from sparseinfer.kernels.isa import native


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
    operand = gemm.operand(x)
    y = torch.zeros(x.shape)
    counts = torch.zeros(x.shape[0], 2, dtype=torch.int64)
    for begin, end in blocks(weights.intermediate, weights.hidden):
        g = gemm.times_transposed(operand, gemm.weights(weights.gate, begin, end), "g")
        u = gemm.times_transposed(operand, gemm.weights(weights.up, begin, end), "u")
        h = _gate(g, u, weights, begin, end, counts, gemm)
        y += gemm.times(h, gemm.weights(weights.down, begin, end), "y")
    if weights.down_bias is not None:
        y += weights.down_bias
    return FfnOutput(y, counts)


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
        end - begin,
        PHI.index(weights.phi),
        PSI.index(weights.psi),
        counts.data_ptr(),
        g.shape[0],
        gemm.pool.native,
        gemm.isa,
    )
    return g
