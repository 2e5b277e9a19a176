"""A linear layer that may be stored by input, and whose inputs may have thresholds.

    y = sum over inputs j that count of x_j * W[:, j] + bias        (`input_mask` says which count)

Stored by output, a matrix is [N, K] and all of it is read. Stored by input ("input-major") it is
[K, N]: what belongs to an input that does not count is one row, which decoding leaves unread.
`reference` is plain torch, `prefill` serves prompts, `gpu` decodes on a GPU; in decoding on the CPU
it is a part of `decoder`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from sparseinfer.kernels.input_mask import check_threshold, check_vector
from sparseinfer.kernels.matrix import Matrix


class ProjectionOutput(NamedTuple):
    """What one call returns."""

    y: Tensor
    """[T, N] fp32."""
    used: Tensor | None
    """[T] int64: inputs that count; None without thresholds."""


@dataclass(frozen=True)
class Projection:
    """Weights of one linear layer.

    Args:
        weight: [N, K], or [K, N] where `by_input`.
        bias: [N] fp32 or None.
        threshold: [K] fp32 on |x|, inf switches an input off; None: every input counts.

    Raises:
        ValueError: a shape, dtype, device or layout that does not fit, or a NaN threshold.
    """

    weight: Matrix
    bias: Tensor | None = None
    threshold: Tensor | None = None
    by_input: bool = False

    def __post_init__(self) -> None:
        check_vector("bias", self.bias, self.outputs, self.weight.device)
        check_threshold("threshold", self.threshold, self.inputs, self.weight.device)

    @property
    def inputs(self) -> int:
        """K."""
        return self.weight.rows if self.by_input else self.weight.columns

    @property
    def outputs(self) -> int:
        """N."""
        return self.weight.columns if self.by_input else self.weight.rows


class AttentionProjections(NamedTuple):
    """The linear layers of one attention layer, each with inputs of its own."""

    q: Projection
    k: Projection
    v: Projection
    o: Projection


__all__ = ["AttentionProjections", "Projection", "ProjectionOutput"]
