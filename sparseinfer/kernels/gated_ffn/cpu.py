"""The gated FFN for decoding on the CPU: skipped rows stay unread."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseinfer.kernels.gated_ffn import (
    PHI,
    PSI,
    FfnOutput,
    FfnWeights,
    check_candidates,
    check_input,
    ffn_output,
)
from sparseinfer.kernels.handles import native_matrix
from sparseinfer.kernels.isa import choose_isa, native
from sparseinfer.kernels.lowrank import LowRank
from sparseinfer.kernels.lowrank.cpu import native_lowrank
from sparseinfer.kernels.masks import to_bits
from sparseinfer.kernels.planes import PlaneMatrix
from sparseinfer.kernels.sign.cpu import native_sign
from sparseinfer.kernels.sketch.cpu import native_sketch
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

    def __call__(self, x: Tensor, candidates: Tensor | None = None) -> FfnOutput:
        """y [B, H] fp32 and counts for x [B, H] fp32, contiguous.

        Args:
            candidates: bool [B, I], neurons to consider, in place of a predictor: no row of the
                others is read.

        Raises:
            ValueError: `x` or `candidates` has the wrong shape, dtype, device or layout, or these
                weights take no candidates.
            RuntimeError: the pool belongs to the parent of a forked process.
        """
        weights = self.weights
        check_input(x, weights)
        check_candidates(candidates, x, weights)
        y = torch.empty(x.shape)
        counts = torch.empty((x.shape[0], 3), dtype=torch.int64)
        self.into(x, y, counts, None if candidates is None else to_bits(candidates))
        rows, gates = counts.split((2, 1), 1)
        chosen = candidates is not None or weights.chooses_candidates
        return ffn_output(y, rows, None, None, weights, gates[:, 0] if chosen else None)

    def into(self, x: Tensor, y: Tensor, counts: Tensor, bits: Tensor | None = None) -> None:
        """What a call computes, into memory that is there, and without its checks.

        Args:
            x, y: [B, H] fp32, contiguous.
            counts: [B, 3] int64, contiguous: rows of up, of down and of gate.
            bits: candidates as `masks.to_bits` gives them, contiguous.
        """
        self.native.call(
            self._pool,
            self.isa,
            x.data_ptr(),
            0 if bits is None else bits.data_ptr(),
            y.data_ptr(),
            counts.data_ptr(),
            x.shape[0],
        )


def native_ffn(weights: FfnWeights):
    """The compiled handle on one layer's weights, which it keeps alive.

    Raises:
        ValueError: weights that are not on the CPU.
        ImportError: the native kernels are not built.
    """
    if weights.gate.device.type != "cpu":
        raise ValueError(f"weights must be on the CPU, not on {weights.gate.device}")
    biases = (weights.gate_bias, weights.up_bias, weights.down_bias)
    common = (
        native_matrix(weights.down),
        weights.threshold.detach(),
        *(None if bias is None else bias.detach() for bias in biases),
    )
    phi, psi = PHI.index(weights.phi), PSI.index(weights.psi)
    chooser = _native_chooser(weights)
    gate, up = weights.gate, weights.up
    if isinstance(gate, PlaneMatrix) or isinstance(up, PlaneMatrix):
        assert isinstance(gate, PlaneMatrix)  # checked when made, as is that planes are sketches
        assert isinstance(up, PlaneMatrix)
        assert chooser is not None
        return native().GatedFfn(gate.low, up.low, *common, phi=phi, psi=psi, planes=chooser)
    return native().GatedFfn(
        native_matrix(gate),
        native_matrix(up),
        *common,
        phi=phi,
        psi=psi,
        gate_input=None if weights.gate_input is None else weights.gate_input.detach(),
        up_input=None if weights.up_input is None else weights.up_input.detach(),
        down_input=None if weights.down_input is None else weights.down_input.detach(),
        gate_by_input=weights.gate_by_input,
        up_by_input=weights.up_by_input,
        top_k=weights.top_k or 0,
        chooser=chooser,
    )


def _native_chooser(weights: FfnWeights):
    if weights.sketch is not None:
        return native_sketch(
            weights.sketch,
            weights.threshold,
            phi=weights.phi,
            psi=weights.psi,
            gate_bias=weights.gate_bias,
            up_bias=weights.up_bias,
        )
    if weights.predictor is None:
        return None
    if isinstance(weights.predictor, LowRank):
        return native_lowrank(weights.predictor)
    return native_sign(weights.predictor)
