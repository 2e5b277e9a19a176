"""The gated FFN for decoding on the CPU: one native call per layer, skipped rows stay unread."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseinfer.kernels.gated_ffn import PHI, PSI, FfnOutput, FfnWeights, check_input
from sparseinfer.kernels.isa import choose_isa, native
from sparseinfer.kernels.threads import CpuPool


class CpuGatedFfn:
    """A handle on one layer's weights; call it with x [B, H] fp32.

    Args:
        weights: on the CPU; kept alive, not copied.
        pool: threads to run on.
        isa: kernel variant; None takes the fastest available one.

    The bits of a row's result depend on the weights, that row and the variant only: not on the
    number of threads, the other rows of the batch or the run. Any B works; the time grows with B
    (for prompts use `reference`).

    Raises:
        ValueError: weights that are not on the CPU, or an `isa` that cannot run here.
        ImportError: the native kernels are not built.
    """

    def __init__(self, weights: FfnWeights, pool: CpuPool, isa: str | None = None) -> None:
        if weights.gate.device.type != "cpu":
            raise ValueError(f"weights must be on the CPU, not on {weights.gate.device}")
        self.weights = weights
        self.isa = choose_isa(isa)
        biases = (weights.gate_bias, weights.up_bias, weights.down_bias)
        self._native = native().GatedFfn(
            weights.gate.detach(),
            weights.up.detach(),
            weights.down.detach(),
            weights.threshold.detach(),
            *(None if bias is None else bias.detach() for bias in biases),
            phi=PHI.index(weights.phi),
            psi=PSI.index(weights.psi),
            pool=pool.native,
            isa=self.isa,
        )

    def __call__(self, x: Tensor) -> FfnOutput:
        """y [B, H] fp32 and counts [B, 2] int64 for x [B, H] fp32, contiguous.

        Raises:
            ValueError: `x` has the wrong shape, dtype, device or layout.
            RuntimeError: the pool belongs to the parent of a forked process.
        """
        check_input(x, self.weights)
        y = torch.empty(x.shape)
        counts = torch.empty((x.shape[0], 2), dtype=torch.int64)
        self._native.call(x.data_ptr(), y.data_ptr(), counts.data_ptr(), x.shape[0])
        return FfnOutput(y, counts)
