"""RMSNorm on a GPU, one program for each row."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseinfer.kernels.norm import check_input, check_weight
from sparseinfer.kernels.triton_language import check_device, tl, triton


class GpuNorm:
    """A handle on one norm's weight; call it with x [B, H] fp32.

    Args:
        weight: [H] fp32, on a GPU; kept alive, not copied.
        eps: added to the mean of squares.
        relu: a ReLU behind the norm.

    The bits of a row's result depend on the weight and that row only. Nothing waits for the GPU, so
    that calls can be captured in a CUDA graph.

    Raises:
        ValueError: a weight that is not [H] fp32, contiguous and on a GPU.
        UnsupportedError: a GPU that is too old.
    """

    def __init__(self, weight: Tensor, eps: float, *, relu: bool = False) -> None:
        check_weight(weight)
        check_device(weight.device)
        self._weight = weight.detach()
        self._eps = eps
        self._relu = relu

    def __call__(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """What x [B, H] fp32, contiguous, is normed to: [B, H] fp32; any B.

        Args:
            added: [B, H] fp32, contiguous, or None. It is added to `x` in place, and the sum is
                normed: what a layer puts into the hidden state costs no launch of its own.

        Raises:
            ValueError: `x` or `added` has the wrong shape, dtype, device or layout.
        """
        check_input("x", x, self._weight)
        if added is not None:
            check_input("added", added, self._weight)
            if added.shape != x.shape:
                raise ValueError(f"added must be {list(x.shape)}, not {list(added.shape)}")
        normed = torch.empty(x.shape, device=x.device)
        if x.shape[0] == 0:
            return normed
        columns = triton.next_power_of_2(x.shape[1])
        _norm[(x.shape[0],)](
            x,
            x if added is None else added,
            self._weight,
            normed,
            x.shape[1],
            self._eps,
            ADDS=added is not None,
            RELU=self._relu,
            COLUMNS=columns,
            # 16 values for a thread, where there are so many.
            num_warps=max(1, min(16, columns // 512)),
        )
        return normed


@triton.jit
def _norm(
    x,
    added,
    weight,
    normed,
    columns,
    eps,
    ADDS: tl.constexpr,
    RELU: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One program norms one row."""
    column = tl.arange(0, COLUMNS)
    inside = column < columns
    place = tl.program_id(0).to(tl.int64) * columns + column
    value = tl.load(x + place, mask=inside, other=0.0)
    if ADDS:
        value += tl.load(added + place, mask=inside, other=0.0)
        tl.store(x + place, value, mask=inside)
    scale = tl.rsqrt(tl.sum(value * value, axis=0) / columns + eps)
    result = value * scale * tl.load(weight + column, mask=inside, other=0.0)
    if RELU:
        # By what is dropped, so that NaN, which compares false, stays.
        result = tl.where(result < 0, 0.0, result)
    tl.store(normed + place, result, mask=inside)
