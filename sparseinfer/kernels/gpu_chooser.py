"""What the predictors have in common on a GPU: x in, candidates out."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from sparseinfer.kernels.gpu_rows import MOST_ROWS
from sparseinfer.kernels.triton_language import check_device


class GpuChooser(ABC):
    """A handle on one layer's predictor; call it with x [B, H] fp32.

    Args:
        shape: (I, H).
        device: where the predictor is.

    A row's candidates depend on the predictor and that row only. Nothing waits for the GPU.

    Raises:
        ValueError: a device that is no GPU.
        UnsupportedError: a GPU that is too old.
    """

    def __init__(self, shape: tuple[int, int], device: torch.device) -> None:
        check_device(device)
        self._neurons, self._hidden = shape
        self._device = device

    def __call__(self, x: Tensor) -> Tensor:
        """Candidates bool [B, I] of x [B, H] fp32, contiguous; any B.

        Raises:
            ValueError: `x` has the wrong shape, dtype, device or layout.
        """
        if x.ndim != 2 or x.shape[1] != self._hidden or x.dtype != torch.float32:
            raise ValueError(f"x must be [B, {self._hidden}] fp32, not {list(x.shape)} {x.dtype}")
        if not x.is_contiguous() or x.device != self._device:
            raise ValueError(f"x must be contiguous and on {self._device}")
        chosen = torch.empty((x.shape[0], self._neurons), dtype=torch.uint8, device=x.device)
        for begin in range(0, x.shape[0], MOST_ROWS):
            end = min(begin + MOST_ROWS, x.shape[0])
            self._choose(x[begin:end], chosen[begin:end])
        return chosen.view(torch.bool)

    @abstractmethod
    def _choose(self, x: Tensor, chosen: Tensor) -> None:
        """Sets chosen uint8 [B, I] to 1 or 0, for at most 8 rows."""
