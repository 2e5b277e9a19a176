"""Finds the tiles of a gated FFN that are fastest on a GPU; what was found is kept on disk."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product

from torch import Tensor

from sparseinfer.kernels.gated_ffn import FfnWeights
from sparseinfer.kernels.gated_ffn.gpu_neurons import FfnTiles
from sparseinfer.kernels.gated_ffn.gpu_rules import gpu_ffn
from sparseinfer.kernels.gpu_rows import RowTile
from sparseinfer.kernels.gpu_timing import microseconds
from sparseinfer.kernels.gpu_tuning import TuningCache
from sparseinfer.kernels.triton_language import triton

_REPLAYS = 10

Time = Callable[[Sequence[Callable[[], object]]], float]
"""Microseconds of each of some calls that follow one another; inf where they cannot run."""


def fastest_tiles(
    layers: Sequence[FfnWeights], x: Tensor, cache: TuningCache, time: Time | None = None
) -> FfnTiles:
    """The fastest of `gate_choices`, then of `neuron_choices`: a few seconds for each choice that
    has to be compiled, nothing where the cache knows.

    Args:
        layers: of one shape, format and rule, on one GPU; the more, the less of them L2 holds.
        x: fp32 [B, H].
        time: None measures.
    """
    first = layers[0]
    time = time or _measured

    def of(tiles: FfnTiles) -> float:
        return time([partial(gpu_ffn(one, tiles), x) for one in layers])

    best = FfnTiles.of(first.hidden)
    key = _key(first, x.shape[0])
    if not first.chooses_candidates and not first.needs_all_gates:
        best = cache.best(f"{key} gate", gate_choices(best), of)
    return cache.best(f"{key} neurons", neuron_choices(best), of)


def gate_choices(tiles: FfnTiles) -> list[FfnTiles]:
    """Ways to compute all gates."""
    groups = tiles.gate.groups
    return [
        replace(tiles, segment=segment, gate=RowTile(rows, groups, warps, 1))
        for segment, rows, warps in ((32, 4, 4), (32, 4, 8), (32, 8, 8), (16, 4, 4), (64, 4, 8))
    ]


def neuron_choices(tiles: FfnTiles) -> list[FfnTiles]:
    """Ways to compute the neurons that fire."""
    return [
        replace(tiles, per_processor=programs, neuron=RowTile(rows, tiles.neuron.groups, warps, 1))
        for programs, rows, warps in product((1, 2), (4, 8), (4, 8))
    ]


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


__all__ = ["fastest_tiles", "gate_choices", "neuron_choices"]
