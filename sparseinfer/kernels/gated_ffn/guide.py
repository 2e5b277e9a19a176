"""What decides whether a neuron is needed: a small part of its weights.

With that part of the cold neurons on a GPU (their gate rows, or their rows in a predictor or a
sketch) the CPU reads rows of candidates alone, in place of all cold gate rows: where 5% of them
fire, about a seventh of the bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparseinfer.kernels.gated_ffn import FfnWeights
from sparseinfer.kernels.lowrank import LowRank
from sparseinfer.kernels.matrix import Matrix
from sparseinfer.kernels.planes import PlaneMatrix
from sparseinfer.kernels.sign import SignBits
from sparseinfer.kernels.sketch import Sketch

Guide = Callable[[Tensor, Tensor], None]
"""guide(x [B, H] fp32, bits int16 [blocks of 16 rows, I]): on the GPU, sets bit b of a neuron where
row b of x may need it (`masks.to_bits`)."""


@dataclass(frozen=True)
class GuideWeights:
    """The part of some neurons' weights that decides whether they are needed.

    Args:
        gate: [I, H]; None where something else decides.
        threshold: [I] fp32, on what `gate` or `sketch` give.
        predictor, sketch: as in `FfnWeights`.
    """

    phi: str
    psi: str
    threshold: Tensor
    gate: Matrix | None = None
    gate_bias: Tensor | None = None
    up_bias: Tensor | None = None
    predictor: LowRank | SignBits | None = None
    sketch: Sketch | None = None

    @classmethod
    def of(cls, weights: FfnWeights) -> GuideWeights:
        """
        Raises:
            ValueError: weights in planes, which decide for themselves.
        """
        if isinstance(weights.gate, PlaneMatrix):
            raise ValueError("weights in planes take no guide")
        if weights.predictor is not None:
            return cls(weights.phi, weights.psi, weights.threshold, predictor=weights.predictor)
        sketch = weights.sketch
        return cls(
            weights.phi,
            weights.psi,
            weights.threshold,
            gate=weights.gate if sketch is None else None,
            gate_bias=weights.gate_bias,
            up_bias=None if sketch is None else weights.up_bias,
            sketch=sketch,
        )


def guided(weights: FfnWeights) -> FfnWeights:
    """The weights as they are computed for candidates that a guide has named.

    Gates and sketches have decided then; behind a predictor the threshold still does.

    Raises:
        ValueError: weights in planes, which decide for themselves.
    """
    if isinstance(weights.gate, PlaneMatrix):
        raise ValueError("weights in planes take no guide")
    if weights.predictor is not None:
        return replace(weights, predictor=None)
    return replace(weights, sketch=None, threshold=torch.zeros_like(weights.threshold))


__all__ = ["Guide", "GuideWeights", "guided"]
