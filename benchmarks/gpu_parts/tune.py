"""Finds the tiles of the gated FFN that are fastest on this GPU, and keeps them on disk."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import torch

from gpu_parts.layers import SHAPES, inputs, layer_copies
from sparseinfer.kernels.gated_ffn.gpu import GpuGatedFfn
from sparseinfer.kernels.gated_ffn.gpu_neurons import FfnTiles
from sparseinfer.kernels.gpu_rows import RowTile
from sparseinfer.kernels.gpu_timing import microseconds
from sparseinfer.kernels.gpu_tuning import TuningCache
from sparseinfer.kernels.triton_language import triton

_DENSITY = 0.1
_REPLAYS = 10


def gate_choices(tiles: FfnTiles) -> list[FfnTiles]:
    """Ways to compute all gates."""
    return [
        replace(tiles, segment=segment, gate=RowTile(rows, tiles.gate.groups, warps, 1))
        for segment, rows, warps in product((16, 32, 64), (2, 4, 8), (4, 8))
    ]


def neuron_choices(tiles: FfnTiles) -> list[FfnTiles]:
    """Ways to compute the neurons that fire."""
    return [
        replace(tiles, per_processor=programs, neuron=RowTile(rows, tiles.neuron.groups, warps, 1))
        for programs, rows, warps in product((1, 2, 3), (2, 4, 8), (4, 8, 16))
    ]


def tuned(shape: str, batch: int, folder: Path) -> FfnTiles:
    """The best of both lists at a density of 0.1, gates first."""
    x = inputs(shape, batch)
    weights = [layer.at(x, _DENSITY) for layer in layer_copies(shape)]
    cache = TuningCache(folder, torch.cuda.get_device_name(), triton.__version__)

    def time(tiles: FfnTiles) -> float:
        calls = [partial(GpuGatedFfn(one, tiles), x) for one in weights]
        try:
            return statistics.median(microseconds(calls, _REPLAYS))
        except triton.runtime.errors.OutOfResources:
            return math.inf

    hidden, inner = SHAPES[shape]
    key = f"gated_ffn bf16 {hidden}x{inner} B={batch}"
    best = cache.best(f"{key} gate", gate_choices(FfnTiles.of(hidden)), time)
    return cache.best(f"{key} neurons", neuron_choices(best), time)
