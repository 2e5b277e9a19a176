"""Low-rank maps of given inputs: the best of a rank in the mean square, and a guess without training.

    logit = outward (inward x') + bias        x' = (x - mean) / deviation

The guess follows from the gate's weights alone: the gate value of a neuron, given what a low-rank
map keeps of it, is about normal, so the odds that it exceeds its threshold are about logistic in
the kept part (a logistic curve of slope 1.702 is within 0.01 of the normal distribution's).
Reduced-rank regression: Izenman, J. Multivariate Analysis 5 (1975).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparseinfer.predictors.ffn import LayerFfn

_LOGISTIC_SLOPE = 1.702
_LARGEST_LOGIT = 30.0
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


def guess(ffn: LayerFfn, moments: Moments, rank: int) -> LowRankMap:
    """A predictor from the weights of the gate and the moments of its inputs, without labels."""
    gate = ffn.gate * moments.deviation
    spread = ((gate.double() @ moments.correlation) * gate).sum(1).clamp_min(0).sqrt()
    spread = spread.clamp_min(_FLOOR * float(spread.max()) + 1e-30).float()
    # Every neuron counts alike, whatever the size of its gate values.
    wide = LowRankMap(
        torch.eye(gate.shape[1]), gate / spread[:, None], torch.zeros(gate.shape[0])
    )
    low = reduced(wide, moments.correlation, rank)
    explained = low.outward.square().sum(1).clamp_max(0.999)
    slope = _LOGISTIC_SLOPE / (1 - explained).sqrt()
    margin = (ffn.gate @ moments.mean - ffn.gate_level) / spread
    bias = (slope * margin).clamp(-_LARGEST_LOGIT, _LARGEST_LOGIT)
    return LowRankMap(low.inward, slope[:, None] * low.outward, bias)
