"""Preparations that run in a worker of their own, whose memory goes with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def export_gguf(model: str, kind: str) -> dict[str, Any]:
    """Writes the checkpoint `model` for llama.cpp unless it is there: {"path": of the file}."""
    from sparseinfer.bench.gguf_export import gguf_file
    from sparseinfer.checkpoint import Checkpoint

    return {"path": str(gguf_file(Checkpoint.open(Path(model)), kind))}  # pyright: ignore[reportArgumentType]


def calibrate(model: str, ids: list[int], sparsity: float, threads: int) -> list[float]:
    """See `calibrate.thresholds_in_sequence`."""
    import torch

    from sparseinfer.bench.calibrate import thresholds_in_sequence
    from sparseinfer.checkpoint import Checkpoint

    torch.set_num_threads(threads)
    return thresholds_in_sequence(Checkpoint.open(Path(model)), ids, sparsity)


def calibrate_inputs(
    model: str, ids: list[int], sparsity: float, threads: int
) -> dict[str, list[float]]:
    """See `calibrate.input_thresholds_in_sequence`."""
    import torch

    from sparseinfer.bench.calibrate import input_thresholds_in_sequence
    from sparseinfer.checkpoint import Checkpoint

    torch.set_num_threads(threads)
    return input_thresholds_in_sequence(Checkpoint.open(Path(model)), ids, sparsity)


JOBS: dict[str, Callable[..., Any]] = {
    "export_gguf": export_gguf,
    "calibrate": calibrate,
    "calibrate_inputs": calibrate_inputs,
}
