"""Weights and inputs for GPU kernels, and how near to a reference their outputs must be."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from matrices import values
from torch import Tensor

from sparseinfer.kernels.gated_ffn import FfnWeights
from sparseinfer.kernels.matrix import Format, Matrix
from sparseinfer.kernels.quantize import quantize

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def normal(*shape: int, seed: int = 0) -> Tensor:
    """On the CPU: the same numbers wherever the kernels run."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gpu_matrix(rows: int, columns: int, format: Format, seed: int = 0) -> Matrix:
    """Random weights of size about 1 / sqrt(columns)."""
    weight = normal(rows, columns, seed=seed) * columns**-0.5
    if format == "fp16":
        return Matrix.of(weight.half().to(DEVICE))
    return moved(quantize(weight, format), DEVICE)


def moved(matrix: Matrix, device: torch.device | str) -> Matrix:
    return Matrix(matrix.format, matrix.data.to(device), matrix.columns)


def to_gpu(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.to(DEVICE)


def close(found: Tensor, x: Tensor, weight: Matrix, bias: Tensor | None = None) -> None:
    """Asserts that found [B, N] is x [B, K] @ weight.T + bias, up to the rounding of fp32 sums in
    any order."""
    exact = values(moved(weight, "cpu"))
    wide = x.double().cpu().numpy()
    added = np.zeros(1) if bias is None else bias.double().cpu().numpy()
    want = wide @ exact.T + added
    # What int4 kernels subtract for the zero point is part of the sum.
    size = np.abs(wide) @ (np.abs(exact) + 8 * np.abs(exact).max(1, keepdims=True)).T
    bound = (weight.columns + 16) * 1.2e-7 * (size + np.abs(added)) + 1e-37
    off = np.abs(found.double().cpu().numpy() - want)
    assert (off <= bound).all(), f"{(off / bound).max():.3g} x the bound"


def placed(part: Any) -> Any:
    """A tensor, or a dataclass, named tuple, list or dict of such, where the kernels run."""
    return _placed(part, {})


def ffn_to_gpu(weights: FfnWeights) -> FfnWeights:
    """The same layer where the kernels run."""
    return _placed(weights, {})


def _placed(part: Any, made: dict[int, Any]) -> Any:
    """What is one object stays one."""
    if id(part) not in made:
        moved_part = part
        if isinstance(part, Tensor):
            moved_part = part.to(DEVICE)
        elif isinstance(part, dict):
            moved_part = {name: _placed(value, made) for name, value in part.items()}
        elif isinstance(part, tuple) and hasattr(part, "_fields"):
            moved_part = type(part)(*(_placed(one, made) for one in part))
        elif isinstance(part, list):
            moved_part = [_placed(one, made) for one in part]
        elif is_dataclass(part) and not isinstance(part, type):
            names = [field.name for field in fields(part)]
            moved_part = replace(
                part, **{name: _placed(getattr(part, name), made) for name in names}
            )
        made[id(part)] = moved_part
    return made[id(part)]
