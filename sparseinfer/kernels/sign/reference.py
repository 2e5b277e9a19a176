"""Sign-bit candidates in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseinfer.kernels.sign import SignBits


def candidates(x: Tensor, predictor: SignBits) -> Tensor:
    """Candidates bool [B, I] of x [B, H] fp32."""
    keep = negatives(x, predictor) <= predictor.most
    return keep | torch.isnan(x).any(1, keepdim=True)


def negatives(x: Tensor, predictor: SignBits) -> Tensor:
    """Products x_j W_ij of negative sign, int64 [B, I]; 0 counts as positive."""
    shifts = torch.arange(8, dtype=torch.uint8, device=x.device)
    bits = (predictor.bits[:, :, None] >> shifts & 1).flatten(1)[:, : predictor.hidden]
    signs = 1.0 - 2.0 * bits.float()
    # A sum of +-1 is exact in fp32; differing signs are what it lacks of H, halved.
    agreement = torch.where(x < 0, -1.0, 1.0) @ signs.T
    return ((predictor.hidden - agreement) / 2).long()
