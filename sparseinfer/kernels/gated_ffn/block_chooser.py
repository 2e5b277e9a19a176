"""Candidates of many rows, a block of neurons at a time, in fp32 matrix products."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseinfer.kernels.gated_ffn import FfnWeights
from sparseinfer.kernels.gated_ffn.activations import activation, up_activation
from sparseinfer.kernels.gemm import Gemm
from sparseinfer.kernels.lowrank import LowRank
from sparseinfer.kernels.planes import PlaneMatrix
from sparseinfer.kernels.sign import SignBits
from sparseinfer.kernels.sign.reference import negatives
from sparseinfer.kernels.sketch.matrix import SketchMatrix
from sparseinfer.kernels.sketch.reference import reached


class BlockChooser:
    """Chooses among neurons begin..end-1: what `reference.choose` does, block by block.

    Args:
        x: [T, H] fp32.
        weights: with a predictor or a sketch.
        gemm: where to take memory from; the arithmetic is fp32 whatever its own is, since an
            estimate that is rounded further loses neurons.
    """

    def __init__(self, x: Tensor, weights: FfnWeights, gemm: Gemm) -> None:
        self._x = x
        self._weights = weights
        self._gemm = gemm.exact
        predictor, sketch = weights.predictor, weights.sketch
        if isinstance(predictor, LowRank):
            inward = self._gemm.weights(predictor.inward, 0, predictor.rank)
            self._x = self._gemm.times_transposed(x, inward, "z")
        elif sketch is not None:
            self._x = sketch.rounded(x)

    def __call__(self, begin: int, end: int) -> Tensor:
        """bool [T, end - begin]."""
        predictor = self._weights.predictor
        if isinstance(predictor, LowRank):
            outward = self._gemm.weights(predictor.outward, begin, end)
            logits = self._gemm.times_transposed(self._x, outward, "logits")
            return ~(logits.add_(predictor.bias[begin:end]) < 0)
        if isinstance(predictor, SignBits):
            bits = predictor.bits[begin:end].contiguous()
            part = SignBits(bits, predictor.hidden, predictor.most)
            keep = negatives(self._x, part) <= part.most
            return keep | torch.isnan(self._x).any(1, keepdim=True)
        return reached(self._estimates(begin, end), self._weights.threshold[begin:end])

    def _estimates(self, begin: int, end: int) -> Tensor:
        weights, sketch = self._weights, self._weights.sketch
        assert sketch is not None  # else there is a predictor
        g = self._product(sketch.gate, weights.gate_bias, begin, end, "estimated g")
        u = self._product(sketch.up, weights.up_bias, begin, end, "estimated u")
        return activation(weights.phi, g).mul_(up_activation(weights.psi, u)).abs_()

    def _product(
        self,
        sketch: SketchMatrix | PlaneMatrix,
        bias: Tensor | None,
        begin: int,
        end: int,
        name: str,
    ) -> Tensor:
        """[T, end - begin]: valid until `name` is used again."""
        if isinstance(sketch, PlaneMatrix):
            high = self._gemm.weights(sketch.high_matrix(begin, end), 0, end - begin)
            weight = sketch.from_high(high, begin)
        else:
            weight = self._gemm.weights(sketch.int4(begin, end), 0, end - begin)
        product = self._gemm.times_transposed(self._x, weight, name)
        return product if bias is None else product.add_(bias[begin:end])
