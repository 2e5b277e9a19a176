"""y = x @ weight.T + bias with fp32 accumulation: `reference` for prompts, `cpu` for decoding."""

from __future__ import annotations

import torch
from torch import Tensor


def check_weight(weight: Tensor, bias: Tensor | None) -> None:
    """Raises ValueError unless `weight` is [N, K] fp32 or bf16 and contiguous, and `bias` None or
    [N] fp32, contiguous and on the same device."""
    if weight.ndim != 2 or 0 in weight.shape:
        raise ValueError(f"weight must be [N, K] and not empty, not {list(weight.shape)}")
    if weight.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"weight must be float32 or bfloat16, not {weight.dtype}")
    if not weight.is_contiguous():
        raise ValueError("weight must be contiguous")
    if bias is None:
        return
    if bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be [{weight.shape[0]}], not {list(bias.shape)}")
    if bias.dtype != torch.float32:
        raise ValueError(f"bias must be torch.float32, not {bias.dtype}")
    if bias.device != weight.device:
        raise ValueError(f"bias is on {bias.device}, but weight on {weight.device}")
    if not bias.is_contiguous():
        raise ValueError("bias must be contiguous")


def check_input(x: Tensor, weight: Tensor) -> None:
    """Raises ValueError unless `x` is [B, K] fp32, contiguous and on the device of `weight`."""
    if x.ndim != 2 or x.shape[1] != weight.shape[1]:
        raise ValueError(f"x must be [B, {weight.shape[1]}], not {list(x.shape)}")
    if x.dtype != torch.float32:
        raise ValueError(f"x must be torch.float32, not {x.dtype}")
    if x.device != weight.device:
        raise ValueError(f"x is on {x.device}, but weight on {weight.device}")
    if not x.is_contiguous():
        raise ValueError("x must be contiguous")


__all__ = ["check_input", "check_weight"]
