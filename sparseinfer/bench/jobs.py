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


def calibrate_chess(model: str, ids: list[int], sparsity: float, threads: int, file: str) -> None:
    """See `calibrate_neurons.chess_in_sequence`; into a `state_file`."""
    import torch

    from sparseinfer.bench.calibrate_neurons import chess_in_sequence
    from sparseinfer.bench.state_file import Content, write_state
    from sparseinfer.checkpoint import Checkpoint

    torch.set_num_threads(threads)
    found = chess_in_sequence(Checkpoint.open(Path(model)), ids, sparsity)
    write_state(Content(found), Path(file))


def calibrate_sketch(
    model: str, ids: list[int], sparsity: float, threads: int, weights: str, file: str
) -> None:
    """See `calibrate_neurons.sketch_in_sequence`; into a `state_file`."""
    import torch

    from sparseinfer.bench.calibrate_neurons import sketch_in_sequence
    from sparseinfer.bench.state_file import Content, write_state
    from sparseinfer.checkpoint import Checkpoint

    torch.set_num_threads(threads)
    found = sketch_in_sequence(Checkpoint.open(Path(model)), ids, sparsity, weights)
    write_state(Content(found), Path(file))


def fit_predictors(
    model: str, ids: list[int], threads: int, files: dict[str, str]
) -> dict[str, list[dict[str, Any]]]:
    """See `planted_predictors.predictors_of`; into a `state_file` for each kind.

    Returns:
        Kind -> what was measured of each layer.
    """
    import torch

    from sparseinfer.bench.planted_predictors import predictors_of
    from sparseinfer.bench.state_file import Content, write_state
    from sparseinfer.checkpoint import Checkpoint

    torch.set_num_threads(threads)
    checkpoint = Checkpoint.open(Path(model))
    config = checkpoint.config
    qualities = {}
    for kind, (predictors, measured) in predictors_of(checkpoint, ids, list(files)).items():
        thresholds = [torch.zeros(config.intermediate_size) for _ in predictors]
        write_state(Content(thresholds, predictors), Path(files[kind]))
        qualities[kind] = [one.model_dump() for one in measured]
    return qualities


JOBS: dict[str, Callable[..., Any]] = {
    "export_gguf": export_gguf,
    "calibrate": calibrate,
    "calibrate_inputs": calibrate_inputs,
    "calibrate_chess": calibrate_chess,
    "calibrate_sketch": calibrate_sketch,
    "fit_predictors": fit_predictors,
}
