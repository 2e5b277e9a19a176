"""Triton, in which the GPU kernels are written: the one place that imports it.

With TRITON_INTERPRET=1 set before the first import, the same kernels run on CPU tensors, in numpy
and slowly: that is how they are tested where there is no GPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from sparseinfer.errors import UnsupportedError


class TritonMissingError(UnsupportedError, ImportError):
    """Triton is not installed."""


if TYPE_CHECKING:
    # Kernels are a language of their own, which no type checker for Python knows.
    triton: Any

    class tl(Any):
        class constexpr(Any): ...

else:
    try:
        import triton
        import triton.language as tl
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "triton":
            raise
        raise TritonMissingError(
            "Triton, which the GPU kernels need, is not installed: pip install 'sparseinfer[gpu]', "
            "or use --device cpu"
        ) from error

OLDEST = (8, 0)
"""Compute capability from which bf16 is native."""


def interpreted() -> bool:
    """Whether kernels run on CPU tensors."""
    return bool(triton.knobs.runtime.interpret)


def check_device(device: torch.device) -> None:
    """Raises ValueError unless tensors on `device` can be given to kernels, UnsupportedError where
    it is a GPU that is too old."""
    if device.type == "cpu" and interpreted():
        return
    if device.type != "cuda":
        raise ValueError(f"weights must be on a CUDA device, not on {device}")
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST:
        raise UnsupportedError(
            f"{torch.cuda.get_device_name(device)} has compute capability "
            f"{capability[0]}.{capability[1]}; the GPU kernels need {OLDEST[0]}.{OLDEST[1]} or "
            "newer: use --device cpu"
        )


def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; few in the interpreter, so that each has several pieces of work."""
    if device.type != "cuda":
        return 3
    return torch.cuda.get_device_properties(device).multi_processor_count


__all__ = ["TritonMissingError", "check_device", "interpreted", "processors", "tl", "triton"]
