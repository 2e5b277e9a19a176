"""The gated FFN in plain torch: what the kernels are tested against, and how prompts are run."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseinfer.kernels.gated_ffn import PHI, PSI, FfnOutput, FfnWeights, check_input

# Bound of the fp32 copies of weights that exist at one time.
_COPY_BYTES = 64 << 20


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
        weights: widened to fp32 a block of neurons at a time.

    Returns:
        y [B, H] fp32 and counts [B, 2] int64, the rows a sparse kernel would read. h is exactly 0
        for a neuron that is not kept, even where u is inf or NaN; the rows of `down` are all
        multiplied, so they must be finite.

    Raises:
        ValueError: `x` has the wrong shape, dtype, device or layout.
    """
    check_input(x, weights)
    rows, hidden = x.shape
    block = weights.intermediate
    if weights.gate.format != "fp32":
        block = max(1, _COPY_BYTES // (3 * 4 * hidden))
    y = x.new_zeros(rows, hidden)
    counts = torch.zeros(rows, 2, dtype=torch.int64, device=x.device)
    for begin in range(0, weights.intermediate, block):
        end = min(begin + block, weights.intermediate)
        part = slice(begin, end)
        g = x @ weights.gate.float(begin, end).T
        if weights.gate_bias is not None:
            g += weights.gate_bias[part]
        a = activation(weights.phi, g)
        # Said by what is dropped, so that NaN, which compares false, is kept.
        keep = ~((a.abs() < weights.threshold[part]) | (a == 0))
        u = x @ weights.up.float(begin, end).T
        if weights.up_bias is not None:
            u += weights.up_bias[part]
        h = torch.where(keep, a * up_activation(weights.psi, u), 0.0)
        counts[:, 0] += keep.sum(1)
        counts[:, 1] += (h != 0).sum(1)
        y.addmm_(h, weights.down.float(begin, end))
    if weights.down_bias is not None:
        y += weights.down_bias
    return FfnOutput(y, counts)
