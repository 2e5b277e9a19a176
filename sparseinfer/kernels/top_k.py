"""The k values of largest magnitude of each row (Lazy Neuron, 2210.06313), in plain torch.

The native kernels choose the same ones: of equal magnitudes the lower index stays, and NaN counts
as larger than any number.
"""

from __future__ import annotations

import torch
from torch import Tensor


def among_largest(a: Tensor, k: int) -> Tensor:
    """Mask [B, N] of the k largest |a| of each row.

    Args:
        a: [B, N] fp32.
        k: at least 1; all are among the largest where N is not above it.
    """
    # Magnitudes order as their bits do, NaN above all others.
    magnitude = a.contiguous().view(torch.int32) & 0x7FFFFFFF
    order = magnitude.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return torch.zeros(a.shape, dtype=torch.bool, device=a.device).scatter_(1, order, True)
