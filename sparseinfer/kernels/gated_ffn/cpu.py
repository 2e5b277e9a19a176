"""The gated FFN for decoding on the CPU: skipped rows stay unread."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseinfer.kernels.gated_ffn import (
    PHI,
    PSI,
    FfnOutput,
    FfnWeights,
    check_input,
    ffn_output,
)
from sparseinfer.kernels.handles import native_matrix
from sparseinfer.kernels.isa import choose_isa, native
from sparseinfer.kernels.threads import CpuPool


class CpuGatedFfn:
    """A handle on one layer's weights; call it with x [B, H] fp32.

    Args:
        weights: on the CPU; kept alive, not copied. Changing `threshold` in place takes effect at
            the next call.
        pool: threads to run on.
        isa: kernel variant; None takes the fastest available one.

    The bits of a row's result depend on the weights, that row and the variant only: not on the
    number of threads, the other rows of the batch, the run, or how many neurons are kept. Any B
    works; the time grows with B (for prompts use `prefill`).

    Raises:
        ValueError: weights that are not on the CPU or run in a decode step only (stored by input,
            with thresholds on the inputs of gate or up, or top_k), or an `isa` that cannot run
            here.
        ImportError: the native kernels are not built.
    """

    def __init__(self, weights: FfnWeights, pool: CpuPool, isa: str | None = None) -> None:
        thresholds = (weights.gate_input, weights.up_input)
        if weights.needs_all_gates or any(one is not None for one in thresholds):
            raise ValueError("these weights run in a decode step only, see CpuDecoder")
        self.weights = weights
        self.isa = choose_isa(isa)
        self._pool = pool.native
        self.native = native_ffn(weights)

    def __call__(self, x: Tensor) -> FfnOutput:
        """y [B, H] fp32 and counts [B, 2] int64 for x [B, H] fp32, contiguous.

        Raises:
            ValueError: `x` has the wrong shape, dtype, device or layout.
            RuntimeError: the pool belongs to the parent of a forked process.
        """
        check_input(x, self.weights)
        y = torch.empty(x.shape)
        counts = torch.empty((x.shape[0], 2), dtype=torch.int64)
        self.native.call(
            self._pool, self.isa, x.data_ptr(), y.data_ptr(), counts.data_ptr(), x.shape[0]
        )
        return ffn_output(y, counts, None, None, self.weights)


def native_ffn(weights: FfnWeights):
    """The compiled handle on one layer's weights, which it keeps alive.

    Raises:
        ValueError: weights that are not on the CPU.
        ImportError: the native kernels are not built.
    """
    if weights.gate.device.type != "cpu":
        raise ValueError(f"weights must be on the CPU, not on {weights.gate.device}")
    biases = (weights.gate_bias, weights.up_bias, weights.down_bias)
    return native().GatedFfn(
        native_matrix(weights.gate_projection.weight),
        native_matrix(weights.up_projection.weight),
        native_matrix(weights.down),
        weights.threshold.detach(),
        *(None if bias is None else bias.detach() for bias in biases),
        phi=PHI.index(weights.phi),
        psi=PSI.index(weights.psi),
        gate_input=None if weights.gate_input is None else weights.gate_input.detach(),
        up_input=None if weights.up_input is None else weights.up_input.detach(),
        down_input=None if weights.down_input is None else weights.down_input.detach(),
        gate_by_input=weights.gate_by_input,
        up_by_input=weights.up_by_input,
        top_k=weights.top_k or 0,
    )
