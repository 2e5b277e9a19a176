"""Candidates by sign bits: a gate value is likely above 0 where many products x_j W_ij are.

    negative_i = number of j where x_j < 0 differs from W_gate[i, j] < 0
    candidate_i = negative_i <= most

Nothing is trained. Source: SparseInfer (2411.12692): it skips neurons with
negative_i > alpha (H - negative_i), that is most = floor(alpha H / (1 + alpha)). Where x has NaN
all neurons are candidates, so that it shows in the output.

`reference` is plain torch, `cpu` the native op, `gpu` the one in Triton; in a decode step on the
CPU it is part of `decoder`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparseinfer.kernels.matrix import Matrix

WORD = 64
"""Rows of bits are whole words of so many."""


@dataclass(frozen=True)
class SignBits:
    """The predictor of one layer.

    Args:
        bits: uint8 [I, bytes], see `pack_signs`.
        hidden: H.
        most: products of negative sign that a candidate may have, in [-1, H]; H makes all neurons
            candidates, -1 none.

    Raises:
        ValueError: bits that do not fit, or a `most` outside its range.
    """

    bits: Tensor
    hidden: int
    most: int

    def __post_init__(self) -> None:
        width = bytes_per_row(self.hidden)
        if self.bits.ndim != 2 or self.bits.shape[1] != width or self.bits.dtype != torch.uint8:
            raise ValueError(f"bits must be [I, {width}] uint8, not {list(self.bits.shape)}")
        if not self.bits.is_contiguous():
            raise ValueError("bits must be contiguous")
        if not -1 <= self.most <= self.hidden:
            raise ValueError(f"most must be from -1 to {self.hidden}, not {self.most}")

    @classmethod
    def of(cls, gate: Matrix, alpha: float) -> SignBits:
        """Of a gate [I, H].

        Args:
            alpha: conservativeness, at least 0; inf makes all neurons candidates.
        """
        return cls(pack_signs(gate), gate.columns, most_negative(alpha, gate.columns))

    @property
    def intermediate(self) -> int:
        """I."""
        return self.bits.shape[0]

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one guess reads."""
        return self.bits.nbytes


def most_negative(alpha: float, hidden: int) -> int:
    """`most` for SparseInfer's alpha, at least 0.

    Raises:
        ValueError: a negative or NaN alpha.
    """
    if not alpha >= 0:
        raise ValueError(f"alpha must be at least 0, not {alpha}")
    return hidden if math.isinf(alpha) else math.floor(alpha * hidden / (1 + alpha))


def bytes_per_row(hidden: int) -> int:
    """Bytes of the sign bits of a row."""
    return -(-hidden // WORD) * (WORD // 8)


def pack_signs(gate: Matrix) -> Tensor:
    """uint8 [I, bytes]: bit j % 8 of byte j // 8 is set where W[i, j] < 0; bits beyond H are 0."""
    width = bytes_per_row(gate.columns)
    packed = torch.zeros(gate.rows, width, dtype=torch.uint8)
    weights = 2 ** torch.arange(8, dtype=torch.uint8)
    step = max(1, (1 << 24) // gate.columns)
    for begin in range(0, gate.rows, step):
        negative = gate.float(begin, begin + step) < 0
        bits = torch.zeros(len(negative), width * 8, dtype=torch.uint8)
        bits[:, : gate.columns] = negative
        packed[begin : begin + step] = (bits.view(-1, width, 8) * weights).sum(2, dtype=torch.uint8)
    return packed


__all__ = ["SignBits", "bytes_per_row", "most_negative", "pack_signs"]
