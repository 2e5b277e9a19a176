"""Weights in every format, and the values that their bits stand for."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sparseinfer.kernels.matrix import FORMATS, GROUP, Format, Matrix, scales_per_row
from sparseinfer.kernels.quantize import quantize

__all__ = [
    "EPS",
    "FORMATS",
    "LEVELS",
    "NEAR",
    "bundle",
    "held",
    "matrix",
    "poison",
    "product",
    "quantised",
    "relative",
    "terms",
    "values",
]

EPS = float(np.finfo(np.float32).eps)

_ZERO_POINT = {"int8": 128, "int4": 8}
"""Some kernels take codes as unsigned, and subtract what that adds in the end."""

LEVELS = {"int8": 32639, "int4": 127}
"""Levels of either sign in which a group of inputs is held against quantised rows."""

NEAR = {"fp32": 1e-6, "bf16": 1e-6, "int8": 1e-4, "int4": 1e-3}
"""Relative error of many outputs as a whole. Where fp32 rounding decides between two levels, an
input is off by one."""


def matrix(rows: int, columns: int, format: Format, seed: int = 0) -> Matrix:
    """Random weights of size about 1 / sqrt(columns)."""
    random = torch.Generator().manual_seed(seed)
    return quantize(torch.randn(rows, columns, generator=random) * columns**-0.5, format)


def bundle(first: Matrix, second: Matrix) -> tuple[Matrix, Matrix]:
    """The same two matrices with their rows side by side, as packs hold up and down."""
    data = torch.stack((first.data, second.data), 1)
    return (
        Matrix(first.format, data[:, 0], first.columns),
        Matrix(second.format, data[:, 1], second.columns),
    )


def quantised(format: Format) -> bool:
    return format in _ZERO_POINT


def poison(weight: Matrix, rows: Tensor) -> Matrix:
    """A copy in which the rows named by a mask [N] are NaN: the values, or the scales."""
    data = weight.data.clone()
    if quantised(weight.format):
        nan = torch.tensor([torch.nan], dtype=torch.float16).view(torch.uint8)
        scales = scales_per_row(weight.columns)
        data[rows, : 2 * scales] = nan.repeat(scales)
    else:
        data[rows] = torch.nan
    return Matrix(weight.format, data, weight.columns)


def relative(got: Tensor, want: Tensor) -> float:
    """Distance in units of the wanted values' norm."""
    return float((got.double() - want.double()).norm() / want.double().norm())


def values(weight: Matrix) -> np.ndarray:
    """fp64 [N, K]."""
    return weight.float().double().numpy()


def _terms(weight: Matrix) -> np.ndarray:
    """[N, K]: the largest magnitude, per unit of input, of what is summed up in a dot product."""
    size = np.abs(values(weight))
    if not quantised(weight.format):
        return size
    scales = weight.data[:, : 2 * scales_per_row(weight.columns)].contiguous().view(torch.float16)
    spread = scales.abs().double().numpy().repeat(GROUP, 1)[:, : weight.columns]
    return size + _ZERO_POINT[weight.format] * spread


def held(x: np.ndarray, format: Format) -> tuple[np.ndarray, np.ndarray]:
    """Inputs [B, K] as kernels multiply them with rows of a format, and how far each may be off."""
    if not quantised(format):
        return x, np.zeros_like(x)
    rows, columns = x.shape
    padded = np.zeros((rows, -(-columns // GROUP) * GROUP))
    padded[:, :columns] = np.abs(x)
    most = padded.reshape(rows, -1, GROUP).max(2).repeat(GROUP, 1)[:, :columns]
    levels = LEVELS[format]
    step = np.where(most > 1e-30, most, np.inf) / levels
    exact = x / step
    doubtful = np.abs(np.abs(exact) % 1 - 0.5) < 4 * EPS * levels
    return np.where(exact == 0, 0, np.rint(exact) * np.where(most > 1e-30, step, 0)), np.where(
        doubtful & np.isfinite(step), step, 0
    )


def terms(columns: int) -> int:
    """Roundings that a term of a sum of that many may meet, in whatever order it is added."""
    return columns + 16


def product(
    x: np.ndarray, weight: Matrix, bias: np.ndarray | float = 0.0, *, rounds_inputs: bool
) -> tuple[np.ndarray, np.ndarray]:
    """x [B, K] @ weight.T + bias [B, N], and the largest error that it may be computed with.

    A sum of n fp32 products, in whatever order, is off by at most n * eps * sum |terms|. Sums
    within a group of quantised weights are exact.

    Args:
        rounds_inputs: inputs are held in few bits where weights are quantised.
    """
    count, slack = terms(weight.columns), np.zeros_like(x)
    if rounds_inputs and quantised(weight.format):
        count = terms(scales_per_row(weight.columns))
        x, slack = held(x, weight.format)
    exact = values(weight)
    bound = slack @ np.abs(exact).T
    bound += count * EPS * (np.abs(x) @ _terms(weight).T + np.abs(bias)) + 1e-37
    return x @ exact.T + bias, bound
