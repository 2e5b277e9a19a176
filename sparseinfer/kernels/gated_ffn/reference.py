"""The gated FFN in plain torch: what the kernels are tested against, and how a GPU runs prompts."""

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
from sparseinfer.kernels.gated_ffn.activations import activation, up_activation
from sparseinfer.kernels.gemm import Math
from sparseinfer.kernels.lowrank import LowRank
from sparseinfer.kernels.lowrank.reference import candidates as lowrank_candidates
from sparseinfer.kernels.projection.reference import project
from sparseinfer.kernels.sign.reference import candidates as sign_candidates
from sparseinfer.kernels.sketch.reference import estimates, reached
from sparseinfer.kernels.top_k import among_largest


def gated_ffn(
    x: Tensor, weights: FfnWeights, candidates: Tensor | None = None, math: Math = "fp32"
) -> FfnOutput:
    """The function of `sparseinfer.kernels.gated_ffn`, dense.

    Args:
        x: [B, H] fp32, contiguous; any number of rows.
        weights: unpacked a block of rows at a time.
        candidates: bool [B, I], neurons to consider; in place of a predictor.
        math: of the three products; predictors and sketches choose in fp32 in any case.

    Returns:
        y [B, H] fp32 and counts [B, 2] int64, the rows a sparse kernel would read. h is exactly 0
        for a neuron that is not kept, even where u is inf or NaN; the rows of `down` are all
        multiplied, so they must be finite.

    Raises:
        ValueError: `x` or `candidates` has the wrong shape, dtype, device or layout, or these
            weights take no candidates.
    """
    check_input(x, weights)
    check_candidates(candidates, x, weights)
    gate = project(x, weights.gate_projection, math)
    up = project(x, weights.up_projection, math)
    a = activation(weights.phi, gate.y)
    chosen = choose(x, weights) if candidates is None else candidates
    keep = ~(a == 0) if weights.sketch is not None else kept(a, weights.threshold)
    if chosen is not None:
        keep &= chosen
    if weights.top_k is not None:
        keep &= among_largest(torch.where(keep, a, 0.0), weights.top_k)
    h = torch.where(keep, a * up_activation(weights.psi, up.y), 0.0)
    y, used = project(h, weights.down_projection, math)
    counts = torch.stack((keep.sum(1), (h != 0).sum(1) if used is None else used), 1)
    gates = None if chosen is None else chosen.sum(1)
    return ffn_output(y, counts, gate.used, up.used, weights, gates)


def choose(x: Tensor, weights: FfnWeights) -> Tensor | None:
    """Candidates bool [B, I] of x [B, H], by the weights' predictor or sketch; None without."""
    if weights.sketch is not None:
        estimate = estimates(
            x,
            weights.sketch,
            phi=weights.phi,
            psi=weights.psi,
            gate_bias=weights.gate_bias,
            up_bias=weights.up_bias,
        )
        return reached(estimate, weights.threshold)
    if weights.predictor is None:
        return None
    if isinstance(weights.predictor, LowRank):
        return lowrank_candidates(x, weights.predictor)
    return sign_candidates(x, weights.predictor)


def kept(a: Tensor, threshold: Tensor) -> Tensor:
    """Mask [B, I] of the activations a [B, I] that reach their threshold [I]."""
    # Said by what is dropped, so that NaN, which compares false, is kept.
    return ~((a.abs() < threshold) | (a == 0))
