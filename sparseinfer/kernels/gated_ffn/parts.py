"""Where the neurons of one layer are: the hot ones on a GPU, the cold ones on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sparseinfer.kernels.exchange import Exchange
from sparseinfer.kernels.gated_ffn import FfnOutput, FfnWeights
from sparseinfer.kernels.gated_ffn.cold import ColdFfn
from sparseinfer.kernels.gated_ffn.guide import Guide, GuideWeights
from sparseinfer.kernels.gated_ffn.neurons import (
    Memory,
    allocated,
    check_neurons,
    others,
    select,
)
from sparseinfer.kernels.gated_ffn.split import SplitFfn
from sparseinfer.kernels.placement import placed
from sparseinfer.kernels.threads import CpuPool

HotOp = Callable[[FfnWeights], Callable[[Tensor], FfnOutput]]
"""Makes the handle on hot neurons: `gpu.GpuGatedFfn`, say."""

GuideOp = Callable[[GuideWeights], Guide]
"""Makes the handle on what decides about cold ones: `gpu_guide.GpuGuide`."""


class LayerParts:
    """The weights of a layer in two parts, of which one may be missing.

    Args:
        weights: of the whole layer, on the CPU.
        hot: int64, ascending: the neurons that go to the GPU.
        device: the GPU, or the CPU where kernels are interpreted.
        guided: whether the part of the cold neurons that decides which are needed goes there too.
        memory: where copies of cold rows go.

    Copies of cold rows take CPU memory unless the neurons are a range without gaps, as all of them
    are. The bias of down is the hot part's where there is one.

    Raises:
        ValueError: neurons that do not fit, or weights that cannot be taken apart or guided.
        torch.OutOfMemoryError: the GPU does not hold them.
    """

    def __init__(
        self,
        weights: FfnWeights,
        hot: Tensor,
        device: torch.device,
        *,
        guided: bool = False,
        memory: Memory = allocated,
    ) -> None:
        check_neurons(hot, weights.intermediate)
        self._whole = weights
        self._device = device
        self._ids = hot, others(hot, weights.intermediate)
        self.cold: FfnWeights | None = None
        hot_weights, guide = None, None
        if len(hot) == weights.intermediate:
            hot_weights = weights
        elif len(hot) > 0:
            hot_weights = select(weights, hot, down_bias=True)
        if len(self._ids[1]) > 0:
            self.cold = select(weights, self._ids[1], down_bias=len(hot) == 0, memory=memory)
            guide = GuideWeights.of(self.cold) if guided else None
        self.hot: FfnWeights | None
        # Together: what both have, of a predictor say, is there once.
        self.hot, self.guide = placed((hot_weights, guide), device)

    def op(
        self,
        make_hot: HotOp,
        make_guide: GuideOp,
        exchange: Exchange,
        pool: CpuPool,
        isa: str | None = None,
    ) -> SplitFfn:
        """What computes the layer.

        Args:
            make_hot, make_guide: make the handles on what is on the GPU.
            exchange, pool, isa: of the cold part.

        Raises:
            ValueError: weights that do not run in the handles.
        """
        hot = None if self.hot is None else make_hot(self.hot)
        if self.cold is None:
            return SplitFfn(hot)
        guide = None if self.guide is None else make_guide(self.guide)
        return SplitFfn(hot, ColdFfn(self.cold, exchange, pool, guide, isa))

    def take_thresholds(self) -> None:
        """Takes over thresholds that were changed in place in the whole layer."""
        for part, neurons in zip((self.hot, self.cold), self._ids, strict=True):
            if part is not None:
                part.threshold.copy_(self._whole.threshold[neurons])
        if self.guide is not None:
            self.guide.threshold.copy_(self._whole.threshold[self._ids[1]])

    def uploaded(self) -> list[FfnWeights]:
        """The parts on the GPU, the cold one copied there for the occasion: for prompts, whose many
        tokens are worth the transfer.

        Raises:
            torch.OutOfMemoryError: the GPU has no room for a layer's cold neurons.
        """
        parts = (self.hot, self.cold)
        return [placed(part, self._device) for part in parts if part is not None]


__all__ = ["GuideOp", "HotOp", "LayerParts"]
