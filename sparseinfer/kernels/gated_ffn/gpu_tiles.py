"""Finds the tile of a gated FFN that is fastest on a GPU; what was found is kept on disk."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product

from torch import Tensor

from sparseinfer.kernels.gated_ffn import FfnWeights
from sparseinfer.kernels.gated_ffn.gpu_neurons import FfnTile
from sparseinfer.kernels.gated_ffn.gpu_rules import gpu_ffn
from sparseinfer.kernels.gpu_timing import microseconds
from sparseinfer.kernels.gpu_tuning import TuningCache
from sparseinfer.kernels.triton_language import triton

_REPLAYS = 10

Time = Callable[[Sequence[Callable[[], object]]], float]
"""Microseconds of each of some calls that follow one another; inf where they cannot run."""


def fastest_tile(
    layers: Sequence[FfnWeights], x: Tensor, cache: TuningCache, time: Time | None = None
) -> FfnTile:
    """The fastest of `choices`: a few seconds for each that has to be compiled, nothing where the
    cache knows.

    Args:
        layers: of one shape, format and rule, on one GPU; the more, the less of them L2 holds.
        x: fp32 [B, H].
        time: None measures.
    """
    first = layers[0]
    time = time or _measured

    def of(tile: FfnTile) -> float:
        return time([partial(gpu_ffn(one, tile), x) for one in layers])

    return cache.best(_key(first, x.shape[0]), choices(x.shape[0]), of)


def choices(batch: int) -> list[FfnTile]:
    """Ways to walk over a layer for so many rows of x, the default among them."""
    default = FfnTile.of(batch)
    others = [
        replace(default, rows=rows, warps=warps, per_processor=programs)
        for rows, warps, programs in product((4, 8), (4, 8), (1, 2, 3))
    ]
    return [default, *(one for one in others if one != default)]


def _key(weights: FfnWeights, batch: int) -> str:
    chooser = weights.sketch or weights.predictor
    rule = type(chooser).__name__ if chooser is not None else "gate-first"
    if weights.needs_all_gates:
        rule = "all gates first"
    shape = f"{weights.hidden}x{weights.intermediate}"
    return f"gated_ffn {weights.gate.format} {shape} {weights.phi} {rule} B={batch}"


def _measured(calls: Sequence[Callable[[], object]]) -> float:
    try:
        return statistics.median(microseconds(calls, _REPLAYS))
    except triton.runtime.errors.OutOfResources:
        return math.inf


__all__ = ["choices", "fastest_tile"]
