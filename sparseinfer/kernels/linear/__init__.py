"""y = x @ weight.T + bias with fp32 accumulation.

`reference` is plain torch, `prefill` serves prompts, `cpu` and `gpu` decode.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparseinfer.kernels.matrix import Matrix


def check_bias(weight: Matrix, bias: Tensor | None) -> None:
    """Raises ValueError unless `bias` is None or [N] fp32, contiguous and on the same device."""
    if bias is None:
        return
    if tuple(bias.shape) != (weight.rows,):
        raise ValueError(f"bias must be [{weight.rows}], not {list(bias.shape)}")
    if bias.dtype != torch.float32:
        raise ValueError(f"bias must be torch.float32, not {bias.dtype}")
    if bias.device != weight.device:
        raise ValueError(f"bias is on {bias.device}, but weight on {weight.device}")
    if not bias.is_contiguous():
        raise ValueError("bias must be contiguous")


def check_input(x: Tensor, weight: Matrix) -> None:
    """Raises ValueError unless `x` is [B, K] fp32, contiguous and on the device of `weight`."""
    if x.ndim != 2 or x.shape[1] != weight.columns:
        raise ValueError(f"x must be [B, {weight.columns}], not {list(x.shape)}")
    if x.dtype != torch.float32:
        raise ValueError(f"x must be torch.float32, not {x.dtype}")
    if x.device != weight.device:
        raise ValueError(f"x is on {x.device}, but weight on {weight.device}")
    if not x.is_contiguous():
        raise ValueError("x must be contiguous")


__all__ = ["check_bias", "check_input"]
