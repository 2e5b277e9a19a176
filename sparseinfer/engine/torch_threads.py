"""torch's own threads: as many as prefill wants, one while decoding.

torch's OpenMP workers wait for their next task in a busy loop. After each small parallel operation
between two decode steps they would hold the cores that the native kernels need.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """torch's own threads, as many as said; the caller's setting comes back afterwards."""
    before = torch.get_num_threads()
    if count != before:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if count != before:
            torch.set_num_threads(before)
