"""Sketch estimates on the CPU."""

from __future__ import annotations

from torch import Tensor

from sparseinfer.kernels.chooser import CpuChooser
from sparseinfer.kernels.gated_ffn.activations import PHI, PSI
from sparseinfer.kernels.isa import native
from sparseinfer.kernels.planes import PlaneMatrix
from sparseinfer.kernels.sketch import Sketch
from sparseinfer.kernels.threads import CpuPool

_PLANES = 8


class CpuSketch(CpuChooser):
    """The native op of one layer; arguments as in `sketch.reference.estimates`, and a threshold [I]
    fp32, which may be changed in place. Errors as in `CpuChooser`."""

    def __init__(
        self,
        sketch: Sketch,
        threshold: Tensor,
        pool: CpuPool,
        isa: str | None = None,
        *,
        phi: str,
        psi: str,
        gate_bias: Tensor | None = None,
        up_bias: Tensor | None = None,
    ) -> None:
        handle = native_sketch(
            sketch, threshold, phi=phi, psi=psi, gate_bias=gate_bias, up_bias=up_bias
        )
        super().__init__(handle, sketch.shape, pool, isa)


def native_sketch(
    sketch: Sketch,
    threshold: Tensor,
    *,
    phi: str,
    psi: str,
    gate_bias: Tensor | None = None,
    up_bias: Tensor | None = None,
):
    """The compiled handle on a sketch, whose memory it keeps alive."""
    gate, up = (
        one.high if isinstance(one, PlaneMatrix) else one.data for one in (sketch.gate, sketch.up)
    )
    biases = (None if bias is None else bias.detach() for bias in (gate_bias, up_bias))
    return native().Chooser.sketch(
        gate,
        up,
        sketch.shape[1],
        _PLANES if isinstance(sketch.gate, PlaneMatrix) else sketch.bits,
        threshold.detach(),
        *biases,
        phi=PHI.index(phi),
        psi=PSI.index(psi),
    )
