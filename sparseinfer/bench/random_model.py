"""Checkpoints of random weights at a named shape: for speed, never for quality."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from sparseinfer import arch
from sparseinfer.bench.planted import DEVIATION, planted_config, planted_tensor
from sparseinfer.bench.shapes import named_shape
from sparseinfer.checkpoint import layout, shards
from sparseinfer.checkpoint.layout import Progress, no_progress
from sparseinfer.sources.cache import cache_root, cached_folder

SEED = 0
_SHARD_BYTES = 1 << 29
# Part of the folder's name: raised when the weights change.
_VERSION = 1


def random_model(
    shape: str,
    layers: int | None,
    *,
    planted: float | None = None,
    progress: Progress = no_progress,
) -> Path:
    """The checkpoint folder of a shape, written to the cache on first use (bf16).

    Matrices are normal with mean 0 and deviation `DEVIATION`, norms 1. The same shape has the same
    weights everywhere; memory stays near one shard of 512 MiB.

    Args:
        planted: a neuron sparsity; the model then has ReLUs and gates as `planted` describes.

    Raises:
        ConfigError: an unknown shape or impossible number of layers.
        SourceError: the cache cannot be written.
    """
    raw = named_shape(shape, layers)
    name = shape
    if planted is not None:
        raw = planted_config(raw)
        name = f"{shape}-planted-{planted:g}"
    depth = raw["num_hidden_layers"]
    digest = hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()[:12]
    folder = cache_root() / "bench" / "random" / f"{name}-{depth}-layers-{digest}-v{_VERSION}"

    def write(partial: Path) -> None:
        write_random_checkpoint(raw, partial, planted=planted, progress=progress)

    return cached_folder(folder, is_complete=_is_complete, fill=write)


def write_random_checkpoint(
    raw: dict[str, Any],
    folder: Path,
    *,
    planted: float | None = None,
    progress: Progress = no_progress,
) -> None:
    """Writes config, index and shards of random bf16 weights into an existing folder.

    Args:
        planted: as in `random_model`, whose config then is `planted_config`.
    """
    config = arch.model_config(raw, str(folder))
    shapes = arch.tensor_shapes(config)
    groups = _groups(shapes)
    generator = torch.Generator().manual_seed(SEED)
    weight_map: dict[str, str] = {}
    total = 0

    def make(name: str) -> torch.Tensor:
        found = None
        if planted is not None:
            found = planted_tensor(name, shapes[name], planted, config.hidden_size, generator)
        return _random(shapes[name], generator) if found is None else found.bfloat16()

    for number, names in enumerate(groups, start=1):
        file = layout.shard_name(number, len(groups))
        tensors = {name: make(name) for name in names}
        shards.save_shard(tensors, folder / file, {"format": "pt"})
        total += sum(tensor.nbytes for tensor in tensors.values())
        weight_map |= dict.fromkeys(names, file)
        progress("writing random weights", number, len(groups))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / layout.INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")
    (folder / layout.CONFIG).write_text(json.dumps(raw, indent=2) + "\n", "utf-8")


def _random(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    tensor = torch.empty(shape, dtype=torch.bfloat16)
    if len(shape) == 1:
        return tensor.fill_(1.0)
    return tensor.normal_(0.0, DEVIATION, generator=generator)


def _groups(shapes: dict[str, tuple[int, ...]]) -> list[list[str]]:
    """Names in order, in shards of at most `_SHARD_BYTES` (or a single tensor)."""
    groups: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        nbytes = 2 * torch.Size(shape).numel()
        if groups[-1] and size + nbytes > _SHARD_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += nbytes
    return groups


def _is_complete(folder: Path) -> bool:
    return (folder / layout.CONFIG).is_file()
