"""What the native ops of all predictors have in common: x in, candidates out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparseinfer.kernels.isa import choose_isa
from sparseinfer.kernels.masks import ROWS, from_bits
from sparseinfer.kernels.threads import CpuPool


class CpuChooser:
    """A handle on one layer's predictor; call it with x [B, H] fp32.

    Args:
        handle: of the native kernels.
        shape: (I, H).
        pool: threads to run on.
        isa: kernel variant; None takes the fastest available one.

    A row's candidates depend on the predictor, that row and the variant only.

    Raises:
        ValueError: an `isa` that cannot run here.
        ImportError: the native kernels are not built.
    """

    def __init__(
        self, handle: Any, shape: tuple[int, int], pool: CpuPool, isa: str | None = None
    ) -> None:
        self.isa = choose_isa(isa)
        self.native = handle
        self._neurons, self._hidden = shape
        self._pool = pool.native

    def __call__(self, x: Tensor) -> Tensor:
        """Candidates bool [B, I] of x [B, H] fp32, contiguous.

        Raises:
            ValueError: `x` has the wrong shape, dtype, device or layout.
            RuntimeError: the pool belongs to the parent of a forked process.
        """
        if x.ndim != 2 or x.shape[1] != self._hidden or x.dtype != torch.float32:
            raise ValueError(f"x must be [B, {self._hidden}] fp32, not {list(x.shape)} {x.dtype}")
        if not x.is_contiguous() or not x.is_cpu:
            raise ValueError("x must be contiguous and on the CPU")
        bits = torch.empty(-(-len(x) // ROWS), self._neurons, dtype=torch.int16)
        self.native.call(self._pool, self.isa, x.data_ptr(), bits.data_ptr(), len(x))
        return from_bits(bits, len(x))
