"""Sign-bit candidates on the CPU."""

from __future__ import annotations

from sparseinfer.kernels.chooser import CpuChooser
from sparseinfer.kernels.isa import native
from sparseinfer.kernels.sign import SignBits
from sparseinfer.kernels.threads import CpuPool


class CpuSign(CpuChooser):
    """The native op of one layer; arguments and errors as in `CpuChooser`."""

    def __init__(self, predictor: SignBits, pool: CpuPool, isa: str | None = None) -> None:
        shape = (predictor.intermediate, predictor.hidden)
        super().__init__(native_sign(predictor), shape, pool, isa)


def native_sign(predictor: SignBits):
    """The compiled handle on a predictor, whose memory it keeps alive."""
    return native().Chooser.sign(predictor.bits, predictor.hidden, predictor.most)
