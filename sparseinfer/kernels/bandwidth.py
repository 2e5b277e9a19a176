"""How fast this machine reads memory: what decoding is measured against."""

from __future__ import annotations

import torch

from sparseinfer.kernels.isa import native
from sparseinfer.kernels.threads import CpuPool


def read_bandwidth(pool: CpuPool, bytes: int = 1 << 30, repeats: int = 3) -> float:
    """The best of some sequential reads of a buffer, in GB/s (1e9 bytes per second).

    Args:
        pool: threads that read.
        bytes: size of the buffer; far larger than the caches, or it is those that are measured.

    Raises:
        ImportError: the native kernels are not built.
    """
    buffer = torch.ones(bytes, dtype=torch.uint8)
    seconds = min(
        native().read_bandwidth(pool.native, buffer.data_ptr(), bytes) for _ in range(repeats)
    )
    return bytes / seconds / 1e9
