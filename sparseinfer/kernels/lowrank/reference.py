"""Low-rank candidates in plain torch."""

from __future__ import annotations

from torch import Tensor

from sparseinfer.kernels.lowrank import LowRank


def candidates(x: Tensor, predictor: LowRank) -> Tensor:
    """Candidates bool [B, I] of x [B, H] fp32."""
    return ~(logits(x, predictor) < 0)


def logits(x: Tensor, predictor: LowRank) -> Tensor:
    """fp32 [B, I], bias added."""
    z = x @ predictor.inward.float().T
    return z @ predictor.outward.float().T + predictor.bias
