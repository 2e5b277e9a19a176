"""The gated FFN in plain torch: what the kernels are tested against, and how prompts are run."""

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
from sparseinfer.kernels.projection.reference import project
from sparseinfer.kernels.top_k import among_largest


def activation(name: str, g: Tensor) -> Tensor:
    """phi of a tensor of any shape, elementwise, same dtype.

    Raises:
        ValueError: `name` is not one of `PHI`.
    """
    if name == "silu":
        return torch.nn.functional.silu(g)
    if name == "relu":
        return torch.relu(g)
    if name == "relu2":
        return torch.relu(g).square()
    raise ValueError(f"phi must be one of {', '.join(PHI)}, not {name!r}")


def up_activation(name: str, u: Tensor) -> Tensor:
    """psi of a tensor of any shape, elementwise, same dtype.

    Raises:
        ValueError: `name` is not one of `PSI`.
    """
    if name == "id":
        return u
    if name == "relu":
        return torch.relu(u)
    raise ValueError(f"psi must be one of {', '.join(PSI)}, not {name!r}")


def gated_ffn(x: Tensor, weights: FfnWeights) -> FfnOutput:
    """The function of `sparseinfer.kernels.gated_ffn`, dense, in fp32.

    Args:
        x: [B, H] fp32, contiguous; any number of rows.
        weights: widened to fp32 a block of rows at a time.

    Returns:
        y [B, H] fp32 and counts [B, 2] int64, the rows a sparse kernel would read. h is exactly 0
        for a neuron that is not kept, even where u is inf or NaN; the rows of `down` are all
        multiplied, so they must be finite.

    Raises:
        ValueError: `x` has the wrong shape, dtype, device or layout.
    """
    check_input(x, weights)
    gate, up = project(x, weights.gate_projection), project(x, weights.up_projection)
    a = activation(weights.phi, gate.y)
    keep = kept(a, weights.threshold)
    if weights.top_k is not None:
        keep &= among_largest(torch.where(keep, a, 0.0), weights.top_k)
    h = torch.where(keep, a * up_activation(weights.psi, up.y), 0.0)
    y, used = project(h, weights.down_projection)
    counts = torch.stack((keep.sum(1), (h != 0).sum(1) if used is None else used), 1)
    return ffn_output(y, counts, gate.used, up.used, weights)


def kept(a: Tensor, threshold: Tensor) -> Tensor:
    """Mask [B, I] of the activations a [B, I] that reach their threshold [I]."""
    # Said by what is dropped, so that NaN, which compares false, is kept.
    return ~((a.abs() < threshold) | (a == 0))
