"""Low-rank maps of inputs: the best of a rank in the mean square, and a guess without training.

    logit = outward (inward x') + bias        x' = (x - mean) / deviation

Reduced-rank regression: Izenman, J. Multivariate Analysis 5 (1975).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparseinfer.predictors.ffn import LayerFfn
from sparseinfer.predictors.observe import LayerRows, unpack_mask

_LEAST_UNEXPLAINED = 0.05
_FARTHEST_APART = 3.0
"""Standard deviations of the gate between its means where a neuron fires and where it rests."""
_BLOCK_ROWS = 1024
_FLOOR = 1e-6
"""Of eigenvalues, relative to the largest."""


@dataclass(frozen=True)
class Moments:
    """Of inputs x: mean and deviation fp32 [H]; correlation fp64 [H, H]."""

    mean: Tensor
    deviation: Tensor
    correlation: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Moments:
        """Of rows [T, H], any float type; a block of rows is widened at a time."""
        hidden = x.shape[1]
        total = torch.zeros(hidden, dtype=torch.float64)
        square = torch.zeros(hidden, hidden, dtype=torch.float64)
        for block in x.split(8192):
            rows = block.float()
            total += rows.double().sum(0)
            square += (rows.T @ rows).double()
        mean = total / len(x)
        covariance = square / len(x) - mean.outer(mean)
        # An input that never changes tells nothing; any deviation serves.
        deviation = covariance.diagonal().clamp_min(0).sqrt()
        deviation = torch.where(deviation > _FLOOR * deviation.max(), deviation, 1.0)
        correlation = covariance / deviation.outer(deviation)
        return cls(mean.float(), deviation.float(), correlation)

    def normalized(self, x: Tensor) -> Tensor:
        """x' fp32 of x [T, H]."""
        return (x.float() - self.mean) / self.deviation


@dataclass
class LowRankMap:
    """A map from x' to logits, in training: inward fp32 [r, H], outward [I, r], bias [I]."""

    inward: Tensor
    outward: Tensor
    bias: Tensor

    @property
    def rank(self) -> int:
        """r."""
        return self.inward.shape[0]

    def logits(self, normalized: Tensor) -> Tensor:
        """fp32 [T, I] of x' [T, H]."""
        return torch.addmm(self.bias, normalized @ self.inward.T, self.outward.T)

    def folded(self, moments: Moments) -> LowRankMap:
        """The same map of x in place of x'."""
        inward = self.inward / moments.deviation
        return LowRankMap(inward, self.outward, self.bias - self.outward @ (inward @ moments.mean))

    def clone(self) -> LowRankMap:
        return LowRankMap(self.inward.clone(), self.outward.clone(), self.bias.clone())


def reduced(wide: LowRankMap, correlation: Tensor, rank: int) -> LowRankMap:
    """The map of a rank whose logits differ least from those of `wide`, in the mean square over
    inputs with this correlation fp64 [H, H]. Its inner values have variance 1."""
    inward, outward = wide.inward.double(), wide.outward.double()
    inner = inward @ correlation @ inward.T
    values, vectors = torch.linalg.eigh(inner)
    values = values.clamp_min(_FLOOR * float(values[-1]))
    root = (vectors * values.sqrt()) @ vectors.T
    inverse = (vectors / values.sqrt()) @ vectors.T
    scaled = outward @ root
    _, directions = torch.linalg.eigh(scaled.T @ scaled)
    kept = directions[:, -rank:].flip(1)
    return LowRankMap(
        (kept.T @ inverse @ inward).float().contiguous(),
        (scaled @ kept).float().contiguous(),
        wide.bias,
    )


def guess(ffn: LayerFfn, moments: Moments, some: LayerRows, rank: int) -> LowRankMap:
    """A predictor without training: linear discriminants along the gate's rows, cut to a rank.

    Where inputs are normal, the direction that tells best whether a neuron fires is its row of the
    gate, whatever values of the gate it fires for (Stein's lemma); how much it tells, and with
    which sign, is read from some tokens.

    Args:
        some: tokens to learn how often neurons fire from, and how that goes with their gate.
    """
    gate = ffn.gate * moments.deviation
    spread = ((gate.double() @ moments.correlation) * gate).sum(1).clamp_min(0).sqrt()
    spread = spread.clamp_min(_FLOOR * float(spread.max()) + 1e-30).float()
    rows = gate / spread[:, None]
    rate, covariance = _firing(moments.normalized(some.x), rows, unpack_mask(some.masks, len(gate)))
    variance = rate * (1 - rate)
    # Neurons that fire but for a sequence's first token lie many deviations apart there, and near
    # together everywhere else.
    covariance = covariance.clamp(-_FARTHEST_APART * variance, _FARTHEST_APART * variance)
    wide = LowRankMap(
        torch.eye(gate.shape[1]),
        covariance[:, None] * rows / variance[:, None],
        torch.zeros(len(gate)),
    )
    low = reduced(wide, moments.correlation, rank)
    # Of the wide logit's variance, that of neuron i, (covariance / variance)^2, the kept part.
    apart = (covariance / variance).square().clamp_min(1e-12)
    kept = (low.outward.square().sum(1) / apart).clamp(0, 1)
    scale = 1 / (1 - covariance.square() * kept / variance).clamp_min(_LEAST_UNEXPLAINED)
    bias = torch.logit(rate) - scale * (0.5 - rate) * apart * kept
    return LowRankMap(low.inward, scale[:, None] * low.outward, bias)


def _firing(x: Tensor, rows: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
    """How often each neuron fires, in (0, 1), and the covariance of that with x' rows^T (whose mean
    is 0), both fp32 [I].

    Args:
        x: x' fp32 [T, H].
        rows: fp32 [I, H].
        active: bool [T, I].
    """
    fires = torch.zeros(len(rows), dtype=torch.float64)
    product = torch.zeros(len(rows), dtype=torch.float64)
    for begin in range(0, len(x), _BLOCK_ROWS):
        mask = active[begin : begin + _BLOCK_ROWS]
        values = x[begin : begin + _BLOCK_ROWS] @ rows.T
        fires += mask.sum(0)
        product += torch.where(mask, values, 0.0).sum(0)
    # As if it had fired once more and rested once more: no rate is 0 or 1.
    return ((fires + 1) / (len(x) + 2)).float(), (product / len(x)).float()
