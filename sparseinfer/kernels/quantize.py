"""Rounds weights to the formats of `matrix`: bf16, and groups of 32 in int8 or int4.

Quantising is done once per model, in plain torch, a block of rows at a time: small enough to stay
in the cache while many scales are tried.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparseinfer.kernels.matrix import GROUP, Format, Matrix, pack_int4, row_bytes, scales_per_row

_BLOCK_WEIGHTS = 1 << 17
"""Weights that are worked on at one time."""

_DIVISORS = (-8.0, -7.5, -8.5, -9.0, 8.0, 7.5, 8.5, 7.0)
"""int4: a group's scale is first its value of largest magnitude divided by one of these. -8 is the
plain rule, which gives that value the code -8 exactly; larger divisors clip it."""

_REFINEMENTS = 2
"""int4: times that the scale is fitted again to the codes it gave, by least squares."""

_LARGEST_FP16 = 65504.0


def quantize(weight: Tensor, format: Format, out: Tensor | None = None) -> Matrix:
    """Rounds a weight matrix to a format.

    * bf16: to nearest.
    * int8: scale = absmax / 127 of the group, rounded to fp16 (up where fp16 is so coarse there
      that the largest value would be cut).
    * int4: of several scales, positive and negative, the one of the smallest squared error, never
      worse in any group than value of largest magnitude / -8, the rule of llama.cpp's Q4_0.

    Args:
        weight: [N, K] of any floating-point type, finite.
        format: one of `matrix.FORMATS`.
        out: where to put the rows, as `Matrix.data` of that format; None allocates. Only the bytes
            of the rows are written, so rows may lie apart.

    Returns:
        [N, K] in that format. fp32 and bf16 weights that are in the format already are not copied
        unless `out` is given.

    Raises:
        ValueError: an unknown format, a weight that is no matrix, an `out` that does not fit, NaN
            or Inf, or values too large for the format.
    """
    if weight.ndim != 2 or not weight.is_floating_point():
        raise ValueError(f"weight must be a floating-point matrix, not {list(weight.shape)}")
    rows, columns = weight.shape
    width = row_bytes(format, columns)
    if format in ("fp32", "bf16"):
        dtype = torch.float32 if format == "fp32" else torch.bfloat16
        if out is None and weight.dtype == dtype and weight.stride(1) == 1:
            return Matrix(format, weight, columns)
        target = torch.empty(rows, columns, dtype=dtype) if out is None else out
    else:
        target = torch.empty(rows, width, dtype=torch.uint8) if out is None else out
    matrix = Matrix(format, target, columns)
    if matrix.rows != rows:
        raise ValueError(f"out has {matrix.rows} rows, the weight {rows}")
    step = max(1, _BLOCK_WEIGHTS // columns)
    for begin in range(0, rows, step):
        block = weight[begin : begin + step]
        part = target[begin : begin + step]
        if format in ("fp32", "bf16"):
            part.copy_(block)
            _check_range(part.float().abs().amax(), block, format)
        else:
            grouped = _grouped(block)
            scales, codes = (_int8 if format == "int8" else _int4)(grouped)
            groups = scales.shape[1]
            part[:, : 2 * groups] = scales.view(torch.uint8)
            part[:, 2 * groups :] = codes
    return matrix


def _grouped(block: Tensor) -> Tensor:
    """fp32 [rows, groups, 32], filled up with zeros."""
    rows, columns = block.shape
    groups = scales_per_row(columns)
    if groups * GROUP == columns:
        return block.float().contiguous().view(rows, groups, GROUP)
    padded = block.new_zeros(rows, groups * GROUP, dtype=torch.float32)
    padded[:, :columns] = block
    return padded.view(rows, groups, GROUP)


def _int8(grouped: Tensor) -> tuple[Tensor, Tensor]:
    """Scales [rows, groups] fp16 and codes [rows, width] uint8 (the bits of int8)."""
    largest = grouped.abs().amax(2)
    _check_range(largest.amax() / 127, grouped, "int8")
    scales = (largest / 127).half()
    # Near and below the smallest normal number fp16 is too coarse to round down.
    cut = scales.float() * 127.5 < largest
    scales = torch.where(cut, (scales.view(torch.int16) + cut.short()).view(torch.float16), scales)
    codes = (grouped * _inverse(scales.float())[:, :, None]).round_().clamp_(-127, 127)
    return scales, codes.to(torch.int8).view(torch.uint8).flatten(1)


def _int4(grouped: Tensor) -> tuple[Tensor, Tensor]:
    """Scales [rows, groups] fp16 and packed codes [rows, width / 2] uint8."""
    position = grouped.abs().argmax(2, keepdim=True)
    largest = grouped.gather(2, position)[:, :, 0]
    _check_range(largest.abs().amax() / min(map(abs, _DIVISORS)), grouped, "int4")
    best = torch.zeros_like(largest)
    best_error = torch.full_like(largest, torch.inf)

    def try_scales(scales: Tensor) -> None:
        nonlocal best, best_error
        # The codes are chosen for the scale as it is stored: at most the error of any other codes.
        scales = scales.half().float()
        error = _rounded(grouped, scales).mul_(scales[:, :, None]).sub_(grouped).square_().sum(2)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best = torch.where(better, scales, best)

    for divisor in _DIVISORS:
        try_scales(largest / divisor)
    for _ in range(_REFINEMENTS):
        codes = _rounded(grouped, best)
        try_scales((codes * grouped).sum(2) / codes.square().sum(2).clamp_min_(1))
    codes = _rounded(grouped, best).add_(8).to(torch.uint8).flatten(1)
    return best.half(), pack_int4(codes)


def _rounded(grouped: Tensor, scales: Tensor) -> Tensor:
    """The nearest codes, -8..7, as fp32."""
    return (grouped * _inverse(scales)[:, :, None]).round_().clamp_(-8, 7)


def _inverse(scales: Tensor) -> Tensor:
    """1 / scale, and 0 for 0: everything in such a group becomes 0."""
    return torch.where(scales == 0, 0, 1 / scales)


def _check_range(scale: Tensor, weights: Tensor, format: Format) -> None:
    """Raises ValueError unless a block's largest scale (or value) is representable."""
    limit = torch.finfo(torch.float32).max if format in ("fp32", "bf16") else _LARGEST_FP16
    if bool(scale <= limit):  # false for NaN
        return
    raise ValueError(
        f"a weight is NaN, infinite or too large for {format} "
        f"(largest magnitude {float(weights.abs().amax()):.4g})"
    )
