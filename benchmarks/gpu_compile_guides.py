"""Calls of guides, which name neurons for the CPU, for `gpu_compile`."""

from __future__ import annotations

from collections.abc import Callable

import torch

from sparseinfer.kernels.gated_ffn.gpu_guide import GpuGuide
from sparseinfer.kernels.gated_ffn.guide import GuideWeights
from sparseinfer.kernels.matrix import Format, Matrix
from sparseinfer.kernels.sign import SignBits, bytes_per_row

NEURONS = 11008

FORMATS: tuple[Format, ...] = ("fp32", "bf16", "fp16", "int8", "int4")


def guide_runs(matrix: Callable[[int, int, Format], Matrix]) -> dict[str, Callable[[], object]]:
    """Calls whose launches are compiled, by name.

    Args:
        matrix: makes rows x columns of a format, untouched.
    """
    found: dict[str, Callable[[], object]] = {}
    for format in FORMATS:
        for hidden in (576, 4096):
            for batch in (1, 2, 4, 8, 16):
                found[f"guide {format} H={hidden} B={batch}"] = (
                    lambda format=format, hidden=hidden, batch=batch: gates(
                        matrix(NEURONS, hidden, format), batch
                    )
                )
    found["guide sign"] = predicted
    return found


def gates(gate: Matrix, batch: int) -> None:
    """By gates, with a bias."""
    vector = torch.zeros(NEURONS)
    guide = GpuGuide(GuideWeights("silu", "id", vector, gate=gate, gate_bias=vector))
    guide(torch.empty(batch, gate.columns), torch.empty(1, NEURONS, dtype=torch.int16))


def predicted() -> None:
    """By a predictor, whose candidates become bits."""
    hidden = 4096
    signs = SignBits(torch.zeros(NEURONS, bytes_per_row(hidden), dtype=torch.uint8), hidden, 2048)
    guide = GpuGuide(GuideWeights("relu", "id", torch.zeros(NEURONS), predictor=signs))
    guide(torch.empty(16, hidden), torch.empty(1, NEURONS, dtype=torch.int16))
