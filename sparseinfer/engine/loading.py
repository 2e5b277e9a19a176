"""`load`: from what a user calls a model to a `Model` in memory."""

from __future__ import annotations

from pathlib import Path

import torch

from sparseinfer.engine.device import checked_device
from sparseinfer.engine.model import Model
from sparseinfer.engine.settings import check_threads, memory_size
from sparseinfer.formats import import_dtype
from sparseinfer.packed import open_model
from sparseinfer.sources import resolve_model


def load(
    model: str | Path = "smollm2-135m",
    *,
    device: str = "cpu",
    gpu_memory: str | int | None = None,
    windows: torch.Tensor | None = None,
    weights: str = "auto",
    threads: int | None = None,
    huge_pages: bool = False,
    prefill: str = "auto",
    predictor: str | Path | None = None,
) -> Model:
    """Loads a model, ready to run.

    Args:
        model: local folder of a checkpoint or a packed artifact, `.gguf` file, hub id or alias.
        device: `cpu`, or `cuda` (`cuda:1` for the second GPU).
        gpu_memory: how much of a GPU may be used, as `8GiB` or a number of bytes. Where the model
            needs more, the neurons that fire most live on the GPU and the others are computed by
            the CPU at the same time. None uses what there is.
        windows: token ids int64 [W, T] of text, which `gpu_memory` needs to find out which neurons
            fire most (`watched_windows` makes some). What was found is kept on disk.
        weights: `auto` (as stored), `fp32`, `bf16`, `int8` or `int4`. A checkpoint is packed in
            memory; a packed artifact has one type only.
        threads: worker threads; default, and the most that is used, is the number of physical
            cores.
        huge_pages: copy a packed artifact to memory in place of mapping its file: faster to run,
            slower to load, not shared between processes.
        prefill: arithmetic of the matrix products of prompts: `fp32`, `bf16` (activations rounded,
            about twice as fast on a CPU with bf16 instructions), or `auto`: bf16 on such a CPU
            unless the weights are fp32. Generated tokens are computed the same way with any.
        predictor: folder that `train-predictor` wrote for this model; neurons that it does not let
            through are skipped before their gates are read. None reads all gates.

    Raises:
        SourceError: the name cannot be resolved.
        CheckpointError: the folder is incomplete, damaged, unsafe, stale or of another version.
        PredictorError: no predictor, a damaged one, or one that was made for another model.
        UnsupportedError: an architecture or device that this version does not run.
        ConfigError: a bad `weights` or `threads`.
        DeviceMemoryError: the model does not fit the GPU.
        MemoryError: the system refuses the memory.
    """
    checked_device(device)
    check_threads(threads)
    resolved = resolve_model(str(model), dtype=import_dtype(weights))
    source = open_model(resolved.path)
    budget = memory_size(gpu_memory, "--gpu-memory") if isinstance(gpu_memory, str) else gpu_memory
    return Model(
        source,
        device=device,
        gpu_memory=budget,
        windows=windows,
        weights=weights,
        threads=threads,
        huge_pages=huge_pages,
        prefill=prefill,
        predictor=predictor,
    )
