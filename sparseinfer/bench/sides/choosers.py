"""How long predictors and sketches take, alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sparseinfer.kernels.gated_ffn import FfnWeights
from sparseinfer.kernels.gated_ffn.reference import choose
from sparseinfer.kernels.threads import CpuPool


def chooser_microseconds(layers: Sequence[FfnWeights], pool: CpuPool, runs: int) -> list[float]:
    """Microseconds of choosing neurons for one token, means over layers, of each run.

    Args:
        layers: all with a predictor or a sketch. Runs pass over all of them, so that caches hold as
            much of what they read as in a decode step, or less.
    """
    calls = [_call(layer, pool) for layer in layers]
    x = torch.randn(1, layers[0].hidden, generator=torch.Generator().manual_seed(0))
    found = []
    for run in range(-1, runs):
        began = time.perf_counter()
        for call in calls:
            call(x)
        if run >= 0:  # the first run warms up
            found.append(1e6 * (time.perf_counter() - began) / len(calls))
    return found


def _call(layer: FfnWeights, pool: CpuPool) -> Callable[[Tensor], object]:
    return lambda x: choose(x, layer)
