"""The warm start of a run: fitted layers as tensors by name, whichever process asks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from torch import Tensor

from sparseinfer import arch
from sparseinfer.checkpoint.layout import Progress, no_progress
from sparseinfer.finetune.folder import RunFolder
from sparseinfer.finetune.request import Request, Subject
from sparseinfer.finetune.text import Text
from sparseinfer.finetune.warm_start import WarmLayer, memory_needed, warm_start

logger = logging.getLogger("sparseinfer")


def warm_layers(
    subject: Subject,
    request: Request,
    text: Text,
    folder: RunFolder,
    progress: Progress = no_progress,
    over: Callable[[], bool] = lambda: False,
) -> list[WarmLayer] | None:
    """Fits the layers that are not in the folder yet, and reads the others.

    Args:
        over: asked after each layer that was not there yet: whether to stop for now.

    Returns:
        None where it stopped before the last layer.

    Raises:
        SparseInferError: as `warm_start`.
    """
    assert request.warm_start is not None  # settled when the model was known
    run = request.run
    windows = text.windows(request.warm_start, run.context, run.seed)
    logger.info(
        "warm start on %d tokens: needs about %.1f GiB of memory",
        windows.numel(),
        memory_needed(subject.dense.config, windows.numel()) / 2**30,
    )
    fitted = warm_start(
        subject.dense,
        act=request.objective.act,
        windows=windows,
        dtype=subject.dense.dtype,
        work=folder.warm_start,
        seed=run.seed,
        progress=progress,
    )
    layers, before = [], _files(folder)
    for layer in fitted:
        layers.append(layer)
        unfinished = len(layers) < subject.dense.config.num_layers
        # Each call must get further, however long those before take to be read again.
        if unfinished and _files(folder) > before and over():
            return None
    return layers


def _files(folder: RunFolder) -> int:
    return sum(1 for _ in folder.warm_start.iterdir())


def by_name(layers: Sequence[WarmLayer]) -> dict[str, Tensor]:
    """Tensor name in a checkpoint -> fp32 tensor."""
    return {
        arch.ffn_name(layer.layer, part): getattr(layer, part)
        for layer in layers
        for part in ("gate", "up", "down")
    }


def neuron_sparsity(layers: Sequence[WarmLayer]) -> tuple[float, ...]:
    """Of each layer, on tokens that were not fitted on."""
    return tuple(layer.record.neuron_sparsity for layer in layers)
