"""RMSNorm in plain torch fp32."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, relu: bool = False) -> Tensor:
    """RMSNorm (1910.07467) of x [T, H] fp32, with a ReLU behind it where asked for."""
    normed = F.rms_norm(x, (x.shape[-1],), weight, eps)
    return normed.relu_() if relu else normed
