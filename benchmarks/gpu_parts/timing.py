"""Spreads of times on a GPU, and the copy bandwidth that they are held against."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from sparseinfer.bench.spread import Spread
from sparseinfer.kernels.gpu_timing import microseconds

_COPIED_BYTES = 1 << 32


def time_calls(calls: Sequence[Callable[[], object]], replays: int) -> Spread:
    """Microseconds per call, see `microseconds`."""
    return Spread.of(microseconds(calls, replays))


def copy_bandwidth(replays: int = 20) -> Spread:
    """GB/s of a large copy on the GPU, bytes read and bytes written both counted."""
    source = torch.randint(256, (_COPIED_BYTES,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    times = microseconds([lambda: target.copy_(source)], replays)
    return Spread.of([2 * _COPIED_BYTES / one / 1e3 for one in times])
