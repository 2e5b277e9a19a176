"""Which inputs of a linear layer count, for whatever computes with all of them.

    keep_j = |x_j| >= threshold_j and x_j != 0

Thresholds on inputs: TEAL (2408.14690, section 4), WINA (2505.19427), CHESS' selective
sparsification (2409.01366). A NaN input counts, so that it shows in the output.
"""

from __future__ import annotations

import torch
from torch import Tensor

PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")
"""Linear layers of a decoder layer whose inputs may have thresholds, in the order of all counts."""


def mask_inputs(x: Tensor, threshold: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The inputs that count, 0 in place of the others, and how many count in each row.

    Args:
        x: [T, K] fp32.
        threshold: [K] fp32; None: all count, and `x` itself is returned.

    Returns:
        [T, K] fp32, and [T] int64 or None.
    """
    if threshold is None:
        return x, None
    # Said by what is dropped, so that NaN, which compares false, is kept.
    keep = ~((x.abs() < threshold) | (x == 0))
    return torch.where(keep, x, 0.0), keep.sum(1)


def check_vector(name: str, vector: Tensor | None, size: int, device: torch.device) -> None:
    """Raises ValueError unless `vector` is None or [size] fp32, contiguous and on `device`."""
    if vector is None:
        return
    if tuple(vector.shape) != (size,) or vector.dtype != torch.float32:
        raise ValueError(f"{name} must be [{size}] fp32, not {list(vector.shape)} {vector.dtype}")
    if vector.device != device or not vector.is_contiguous():
        raise ValueError(f"{name} must be contiguous and on {device}")


def check_threshold(name: str, threshold: Tensor | None, size: int, device: torch.device) -> None:
    """Raises ValueError as `check_vector`, or where a threshold is NaN."""
    check_vector(name, threshold, size, device)
    if threshold is not None and bool(torch.isnan(threshold).any()):
        raise ValueError(f"{name} has NaN")
