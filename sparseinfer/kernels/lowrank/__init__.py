"""Candidates by a low-rank guess of the gate: which neurons are worth reading its rows for.

    z = x @ inward.T    logit = z @ outward.T + bias    candidate_i = not (logit_i < 0)

A NaN logit lets its neuron through, so that bad input shows in the output. Source: Deja Vu
(2310.17157), PowerInfer (2312.12456).

`reference` is plain torch, `cpu` the native op, `gpu` the one in Triton; in a decode step on the
CPU it is part of `decoder`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparseinfer.kernels.matrix import Matrix


@dataclass(frozen=True)
class LowRank:
    """The predictor of one layer.

    Args:
        inward: [r, H], fp32, bf16 or int8.
        outward: [I, r], same format.
        bias: [I] fp32; the calibrated logit threshold is already taken off. inf lets a neuron
            through always, -inf never.

    Raises:
        ValueError: shapes, formats or devices that do not fit, or NaN in the bias.
    """

    inward: Matrix
    outward: Matrix
    bias: Tensor

    def __post_init__(self) -> None:
        if self.inward.format not in ("fp32", "bf16", "int8"):
            raise ValueError(f"a low-rank predictor cannot be {self.inward.format}")
        if self.outward.format != self.inward.format:
            raise ValueError(f"outward is {self.outward.format}, inward {self.inward.format}")
        if self.outward.columns != self.rank:
            raise ValueError(f"outward must be [I, {self.rank}], not {list(self.outward.shape)}")
        if self.bias.shape != (self.intermediate,) or self.bias.dtype != torch.float32:
            raise ValueError(f"bias must be [{self.intermediate}] fp32")
        if not self.bias.is_contiguous() or bool(torch.isnan(self.bias).any()):
            raise ValueError("bias must be contiguous, without NaN")
        if {self.inward.device, self.outward.device} != {self.bias.device}:
            raise ValueError("a predictor's parts must be on one device")

    @property
    def rank(self) -> int:
        """r."""
        return self.inward.rows

    @property
    def hidden(self) -> int:
        """H."""
        return self.inward.columns

    @property
    def intermediate(self) -> int:
        """I."""
        return self.outward.rows

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one guess reads."""
        inward, outward = self.inward, self.outward
        return inward.rows * inward.row_bytes + outward.rows * outward.row_bytes + self.bias.nbytes


__all__ = ["LowRank"]
