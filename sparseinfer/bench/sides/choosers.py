"""How long predictors and sketches take, alone."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from sparseinfer.kernels.chooser import CpuChooser
from sparseinfer.kernels.gated_ffn import FfnWeights
from sparseinfer.kernels.lowrank import LowRank
from sparseinfer.kernels.lowrank.cpu import CpuLowRank
from sparseinfer.kernels.sign import SignBits
from sparseinfer.kernels.sign.cpu import CpuSign
from sparseinfer.kernels.sketch.cpu import CpuSketch
from sparseinfer.kernels.threads import CpuPool


def chooser_microseconds(layers: Sequence[FfnWeights], pool: CpuPool, runs: int) -> list[float]:
    """Microseconds of choosing neurons for one token, means over layers, of each run.

    Args:
        layers: all with a predictor or a sketch. Runs pass over all of them, so that caches hold as
            much of what they read as in a decode step, or less.
    """
    handles = [_chooser(layer, pool) for layer in layers]
    isa = handles[0].isa
    x = torch.randn(1, layers[0].hidden, generator=torch.Generator().manual_seed(0))
    bits = torch.empty(1, layers[0].intermediate, dtype=torch.int16)
    found = []
    for run in range(-1, runs):
        began = time.perf_counter()
        for handle in handles:
            handle.native.call(pool.native, isa, x.data_ptr(), bits.data_ptr(), 1)
        if run >= 0:  # the first run warms up
            found.append(1e6 * (time.perf_counter() - began) / len(handles))
    return found


def _chooser(layer: FfnWeights, pool: CpuPool) -> CpuChooser:
    if layer.sketch is not None:
        return CpuSketch(
            layer.sketch,
            layer.threshold,
            pool,
            phi=layer.phi,
            psi=layer.psi,
            gate_bias=layer.gate_bias,
            up_bias=layer.up_bias,
        )
    if isinstance(layer.predictor, LowRank):
        return CpuLowRank(layer.predictor, pool)
    assert isinstance(layer.predictor, SignBits)  # what else chooses
    return CpuSign(layer.predictor, pool)
