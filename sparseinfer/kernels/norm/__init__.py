"""RMSNorm (1910.07467), alone or of a sum that is kept.

    normed = x / sqrt(mean(x^2) + eps) * weight

with a ReLU behind it where a model has one ("stage 2" of ReLU Strikes Back, 2310.04564).
`reference` is plain torch, `gpu` decodes; on the CPU it is a part of `decoder`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def check_weight(weight: Tensor) -> None:
    """Raises ValueError unless `weight` is [H] fp32 and contiguous."""
    if weight.ndim != 1 or weight.dtype != torch.float32 or not weight.is_contiguous():
        raise ValueError(
            f"weight must be [H] float32 and contiguous, not {list(weight.shape)} {weight.dtype}"
        )


def check_input(name: str, x: Tensor, weight: Tensor) -> None:
    """Raises ValueError unless `x` is [B, H] fp32, contiguous and on the device of `weight`."""
    if x.ndim != 2 or x.shape[1] != weight.shape[0]:
        raise ValueError(f"{name} must be [B, {weight.shape[0]}], not {list(x.shape)}")
    if x.dtype != torch.float32:
        raise ValueError(f"{name} must be torch.float32, not {x.dtype}")
    if x.device != weight.device:
        raise ValueError(f"{name} is on {x.device}, but weight on {weight.device}")
    if not x.is_contiguous():
        raise ValueError(f"{name} must be contiguous")


__all__ = ["check_input", "check_weight"]
