"""The tiles of the gated FFN that are fastest on this GPU at a density of 0.1."""

from __future__ import annotations

from pathlib import Path

import torch

from gpu_parts.layers import inputs, layer_copies
from sparseinfer.kernels.gated_ffn.gpu_neurons import FfnTile
from sparseinfer.kernels.gated_ffn.gpu_tiles import fastest_tile
from sparseinfer.kernels.gpu_tuning import TuningCache
from sparseinfer.kernels.triton_language import triton

_DENSITY = 0.1


def tuned(shape: str, batch: int, folder: Path) -> FfnTile:
    """Of what `folder` has, or else measured and kept there."""
    x = inputs(shape, batch)
    weights = [layer.at(x, _DENSITY) for layer in layer_copies(shape)]
    cache = TuningCache(folder, torch.cuda.get_device_name(), triton.__version__)
    return fastest_tile(weights, x, cache)
