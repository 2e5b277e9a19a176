"""A model's FFNs as a plan divides them between GPU and CPU."""

from __future__ import annotations

import torch

from sparseinfer.engine.residency import Residency
from sparseinfer.kernels.exchange import Exchange
from sparseinfer.kernels.gated_ffn.parts import GuideOp, HotOp, LayerParts
from sparseinfer.kernels.gated_ffn.split import SplitFfn
from sparseinfer.kernels.threads import CpuPool
from sparseinfer.packed import Weights
from sparseinfer.packed.memory import anonymous


class SplitLayers:
    """The FFNs of all layers, each in two parts.

    Args:
        weights: on the CPU. Rows of cold neurons are copied, in huge pages: what else `weights`
            hold may be let go.
        residency: the plan.
        device: a GPU, or the CPU where kernels are interpreted.
        rows: most rows of a call.
        pool: threads for cold neurons.
        make_hot, make_guide: make the handles on what is on the GPU; None: those in Triton.
        isa: kernel variant of cold neurons; None takes the fastest available one.

    Raises:
        ValueError: neurons or weights that do not fit.
        torch.OutOfMemoryError: the GPU does not hold them.
        MemoryError: the system refuses the memory of cold neurons.
    """

    def __init__(
        self,
        weights: Weights,
        residency: Residency,
        *,
        device: torch.device,
        rows: int,
        pool: CpuPool,
        make_hot: HotOp | None = None,
        make_guide: GuideOp | None = None,
        isa: str | None = None,
    ) -> None:
        make_hot, make_guide = _in_triton(make_hot, make_guide)
        self.parts = [
            LayerParts(layer.ffn, hot, device, guided=guided, memory=anonymous)
            for layer, hot, guided in zip(
                weights.layers, residency.hot, residency.guided, strict=True
            )
        ]
        asked = [
            part.cold.intermediate
            for part in self.parts
            if part.cold is not None and part.guide is not None
        ]
        exchange = Exchange(rows, weights.layers[0].ffn.hidden, max(asked, default=0), device)
        self.ffns: list[SplitFfn] = [
            part.op(make_hot, make_guide, exchange, pool, isa) for part in self.parts
        ]
        """What computes each layer."""

    def take_thresholds(self) -> None:
        """Takes over thresholds of `weights` that were changed in place."""
        for part in self.parts:
            part.take_thresholds()


def _in_triton(make_hot: HotOp | None, make_guide: GuideOp | None) -> tuple[HotOp, GuideOp]:
    # Triton is slow to import, and optional.
    if make_hot is None:
        from sparseinfer.kernels.gated_ffn.gpu_rules import gpu_ffn as make_hot
    if make_guide is None:
        from sparseinfer.kernels.gated_ffn.gpu_guide import GpuGuide as make_guide
    return make_hot, make_guide


__all__ = ["SplitLayers"]
