"""A linear layer that reads the weights of inputs above their threshold only.

    keep_j = |x_j| >= threshold_j and x_j != 0        y = sum over kept j of x_j * weight[j] + bias

Weights are stored by input, so that what belongs to a dropped input is one row that stays unread.
Thresholds on inputs: TEAL (2408.14690, section 4), CHESS' selective sparsification (2409.01366).
A NaN input counts as kept.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sparseinfer.kernels.matrix import Matrix


class SparseInputOutput(NamedTuple):
    """What one call returns."""

    y: Tensor
    """[B, N] fp32."""
    reads: Tensor
    """[B] int64: rows of the weight read."""


def check_arguments(weight: Matrix, threshold: Tensor, bias: Tensor | None) -> None:
    """Raises ValueError unless `threshold` is [K] and `bias` None or [N], both fp32, contiguous,
    on the device of `weight` [K, N], and no threshold is NaN."""
    for name, tensor, size in (
        ("threshold", threshold, weight.rows),
        ("bias", bias, weight.columns),
    ):
        if tensor is None:
            continue
        if tuple(tensor.shape) != (size,) or tensor.dtype != torch.float32:
            raise ValueError(
                f"{name} must be [{size}] fp32, not {list(tensor.shape)} {tensor.dtype}"
            )
        if tensor.device != weight.device or not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous and on {weight.device}")
    if bool(torch.isnan(threshold).any()):
        raise ValueError("threshold has NaN")


def check_input(x: Tensor, weight: Matrix) -> None:
    """Raises ValueError unless `x` is [B, K] fp32, contiguous and on the device of `weight`."""
    if x.ndim != 2 or x.shape[1] != weight.rows or x.dtype != torch.float32:
        raise ValueError(f"x must be [B, {weight.rows}] fp32, not {list(x.shape)} {x.dtype}")
    if x.device != weight.device or not x.is_contiguous():
        raise ValueError(f"x must be contiguous and on {weight.device}")


__all__ = ["SparseInputOutput", "check_arguments", "check_input"]
