"""Memory through which a GPU and the CPU hand each other a few rows.

On a GPU the host's side is pinned, and copies wait for nothing: they can be captured in a CUDA
graph. All layers of a model share one exchange, since they take turns on one stream: each copy to
the host lies behind whatever the layer before it still read.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparseinfer.kernels.masks import ROWS

_ALIGNED = 128
"""Every part begins at a multiple of so many bytes."""

COUNTS = 3
"""Rows of up, of down and of gate that were read."""


class Exchange:
    """Rows on their way to the CPU, and results on their way back.

    Args:
        rows: most rows that are handed over at a time.
        hidden: H.
        neurons: most neurons that candidates are named among; 0 where the CPU finds its own.
        device: a GPU, or the CPU where kernels are interpreted.
    """

    def __init__(self, rows: int, hidden: int, neurons: int, device: torch.device) -> None:
        self.rows = rows
        self.device = device
        self._hidden = hidden
        self._event = torch.cuda.Event() if device.type == "cuda" else None
        self._asked = self._pair(self._mask_begin(rows) + 2 * _blocks(rows) * neurons)
        self._answered = self._pair(self._y_begin(rows) + 4 * rows * hidden)

    def _pair(self, size: int) -> tuple[Tensor, Tensor]:
        """Memory on the device, and as much on the host."""
        pinned = self._event is not None
        host = torch.zeros(size, dtype=torch.uint8, pin_memory=pinned)
        return torch.zeros(size, dtype=torch.uint8, device=self.device), host

    def _mask_begin(self, rows: int) -> int:
        return _aligned(4 * rows * self._hidden)

    def _y_begin(self, rows: int) -> int:
        return _aligned(8 * rows * COUNTS)

    def question(self, rows: int, neurons: int, *, host: bool = False) -> tuple[Tensor, Tensor]:
        """x [rows, H] fp32 and candidates int16 [blocks of 16 rows, neurons], on one of the two
        sides: the same memory in every call with the same rows."""
        memory = self._asked[host]
        begin = self._mask_begin(rows)
        x = memory[: 4 * rows * self._hidden].view(torch.float32).view(rows, self._hidden)
        bits = memory[begin : begin + 2 * _blocks(rows) * neurons].view(torch.int16)
        return x, bits.view(_blocks(rows), neurons)

    def answer(self, rows: int, *, host: bool = False) -> tuple[Tensor, Tensor]:
        """y [rows, H] fp32 and counts [rows, 3] int64, likewise."""
        memory = self._answered[host]
        begin = self._y_begin(rows)
        counts = memory[: 8 * rows * COUNTS].view(torch.int64).view(rows, COUNTS)
        y = memory[begin : begin + 4 * rows * self._hidden].view(torch.float32)
        return y.view(rows, self._hidden), counts

    def send(self, rows: int, neurons: int) -> None:
        """Begins to copy a question to the host."""
        size = self._mask_begin(rows) + 2 * _blocks(rows) * neurons
        device, host = self._asked
        host[:size].copy_(device[:size], non_blocking=True)

    def mark(self) -> None:
        """Marks the place behind all that the device was given so far, for `wait`."""
        if self._event is not None:
            self._event.record(torch.cuda.current_stream(self.device))

    def wait(self) -> None:
        """Waits until the device has come to the mark."""
        if self._event is not None:
            self._event.synchronize()

    def fetch(self, rows: int) -> None:
        """Begins to copy an answer to the device."""
        size = self._y_begin(rows) + 4 * rows * self._hidden
        device, host = self._answered
        device[:size].copy_(host[:size], non_blocking=True)


def _blocks(rows: int) -> int:
    return -(-rows // ROWS)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


__all__ = ["COUNTS", "Exchange"]
