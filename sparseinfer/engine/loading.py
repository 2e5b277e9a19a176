"""`load`: from what a user calls a model to a `Model` in memory."""

from __future__ import annotations

from pathlib import Path

import torch

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.engine.device import checked_device
from sparseinfer.engine.model import Model
from sparseinfer.engine.settings import check_threads, memory_size
from sparseinfer.formats import import_dtype
from sparseinfer.packed import Packed, open_model
from sparseinfer.sources import load_text, resolve_model
from sparseinfer.tokenizer import load_tokenizer

_TEXT = "pydoc"
_CHARACTERS = 40_000
_WINDOW = 256
_WINDOWS = 16
"""Tokens of a window, and windows at most, that neurons are watched on."""


def load(
    model: str | Path = "smollm2-135m",
    *,
    device: str = "cpu",
    gpu_memory: str | int | None = None,
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
            the CPU at the same time; which those are is found out once, on a text that comes with
            Python. None uses what there is.
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
    budget = memory_size(gpu_memory, "gpu_memory") if isinstance(gpu_memory, str) else gpu_memory
    return Model(
        source,
        device=device,
        gpu_memory=budget,
        windows=None if budget is None else watched_windows(source),
        weights=weights,
        threads=threads,
        huge_pages=huge_pages,
        prefill=prefill,
        predictor=predictor,
    )


def watched_windows(source: Checkpoint | Packed) -> torch.Tensor:
    """Token ids int64 [W, T] of English prose, to watch neurons on."""
    ids = load_tokenizer(source.path).encode_plain(load_text(_TEXT).joined[:_CHARACTERS])
    length = min(_WINDOW, source.config.context_length)
    count = min(_WINDOWS, len(ids) // length)
    return torch.tensor(ids[: count * length], dtype=torch.int64).view(count, length)
