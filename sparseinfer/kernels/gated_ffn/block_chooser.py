"""Candidates of many rows, a block of neurons at a time, in fp32 matrix products."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from sparseinfer.kernels.gated_ffn import FfnWeights
from sparseinfer.kernels.gated_ffn.activations import activation, up_activation
from sparseinfer.kernels.lowrank import LowRank
from sparseinfer.kernels.sign import SignBits
from sparseinfer.kernels.sign.reference import negatives
from sparseinfer.kernels.sketch.reference import reached


class BlockChooser:
    """Chooses among neurons begin..end-1: what `reference.choose` does, block by block.

    Args:
        x: [T, H] fp32.
        weights: with a predictor or a sketch.
    """

    def __init__(self, x: Tensor, weights: FfnWeights) -> None:
        self._x = x
        self._weights = weights
        predictor, sketch = weights.predictor, weights.sketch
        if isinstance(predictor, LowRank):
            self._x = linear(x, predictor.inward.float())
        elif sketch is not None:
            self._x = sketch.rounded(x)

    def __call__(self, begin: int, end: int) -> Tensor:
        """bool [T, end - begin]."""
        predictor = self._weights.predictor
        if isinstance(predictor, LowRank):
            outward, bias = predictor.outward.float(begin, end), predictor.bias[begin:end]
            return ~(linear(self._x, outward, bias) < 0)
        if isinstance(predictor, SignBits):
            bits = predictor.bits[begin:end].contiguous()
            part = SignBits(bits, predictor.hidden, predictor.most)
            keep = negatives(self._x, part) <= part.most
            return keep | torch.isnan(self._x).any(1, keepdim=True)
        return reached(self._estimates(begin, end), self._weights.threshold[begin:end])

    def _estimates(self, begin: int, end: int) -> Tensor:
        weights, sketch = self._weights, self._weights.sketch
        assert sketch is not None  # else there is a predictor
        biases = [
            None if bias is None else bias[begin:end]
            for bias in (weights.gate_bias, weights.up_bias)
        ]
        g = linear(self._x, sketch.gate.sketch_float(begin, end), biases[0])
        u = linear(self._x, sketch.up.sketch_float(begin, end), biases[1])
        return activation(weights.phi, g).mul_(up_activation(weights.psi, u)).abs_()
