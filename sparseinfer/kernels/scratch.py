"""Memory that is used again from call to call.

Memory fresh from the system costs a page fault for every 4 KiB first touched, and tensors of some
megabytes go back to it as soon as they are freed: on the small matrices of prompts that alone takes
a tenth of the time.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Scratch:
    """Named buffers. Not thread-safe: one user at a time."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def get(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An uninitialised contiguous CPU tensor; valid until `name` is asked for again.

        It is the same memory each time, whatever the shape and dtype, unless it has to grow.
        """
        size = math.prod(shape) * dtype.itemsize
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size:
            buffer = self._buffers[name] = torch.empty(size, dtype=torch.uint8)
        return buffer[:size].view(dtype).view(shape)

    @property
    def bytes(self) -> int:
        """Memory held."""
        return sum(buffer.numel() for buffer in self._buffers.values())
