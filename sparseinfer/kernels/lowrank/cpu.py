"""Low-rank candidates on the CPU."""

from __future__ import annotations

from torch import Tensor

from sparseinfer.kernels.chooser import CpuChooser
from sparseinfer.kernels.handles import native_matrix
from sparseinfer.kernels.isa import native
from sparseinfer.kernels.lowrank import LowRank
from sparseinfer.kernels.threads import CpuPool


class CpuLowRank(CpuChooser):
    """The native op of one layer; arguments and errors as in `CpuChooser`."""

    def __init__(self, predictor: LowRank, pool: CpuPool, isa: str | None = None) -> None:
        shape = (predictor.intermediate, predictor.hidden)
        super().__init__(native_lowrank(predictor), shape, pool, isa)


def native_lowrank(predictor: LowRank):
    """The compiled handle on a predictor, whose memory it keeps alive."""
    bias: Tensor = predictor.bias.detach()
    inward, outward = native_matrix(predictor.inward), native_matrix(predictor.outward)
    return native().Chooser.lowrank(inward, outward, bias)
