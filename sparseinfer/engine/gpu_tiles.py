"""How the kernels of a model's FFNs walk over its weights: what is fastest on this GPU."""

from __future__ import annotations

import logging

import torch

from sparseinfer.kernels.gated_ffn import FfnWeights
from sparseinfer.kernels.gated_ffn.gpu_neurons import FfnTile
from sparseinfer.kernels.gated_ffn.gpu_tiles import fastest_tile
from sparseinfer.kernels.gpu_tuning import TuningCache
from sparseinfer.kernels.triton_language import triton
from sparseinfer.packed import Weights
from sparseinfer.sources.cache import cache_root

logger = logging.getLogger("sparseinfer")

_TIMED_BYTES = 1 << 30
"""Of layers that take turns while they are timed: many times what L2 holds."""


def tile_for(weights: Weights, device: torch.device) -> FfnTile | None:
    """Tiles for one sequence, measured once for a GPU, shape, format and rule and then kept in the
    cache folder; None, the default, where nothing can be measured.

    Args:
        weights: on the device.
    """
    if device.type != "cuda":
        return None
    cache = TuningCache(
        cache_root() / "gpu-tiles", torch.cuda.get_device_name(device), triton.__version__
    )
    if not cache.path.exists():
        logger.info("finding the fastest kernels for this GPU, once")
    layers = _timed([layer.ffn for layer in weights.layers])
    random = torch.Generator(device).manual_seed(0)
    x = torch.randn(1, layers[0].hidden, generator=random, device=device)
    with torch.cuda.device(device):
        return fastest_tile(layers, x, cache)


def _timed(layers: list[FfnWeights]) -> list[FfnWeights]:
    """As many as hold `_TIMED_BYTES`, or all."""
    size = sum(matrix.rows * matrix.row_bytes for matrix in (layers[0].gate, layers[0].down))
    return layers[: max(1, -(-_TIMED_BYTES // size))]


__all__ = ["tile_for"]
