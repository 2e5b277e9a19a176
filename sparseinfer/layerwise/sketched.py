"""The sketch of an FFN whose matrices are modules."""

from __future__ import annotations

from torch import Tensor, nn

from sparseinfer.kernels.matrix import Matrix
from sparseinfer.kernels.sketch import Sketch
from sparseinfer.kernels.sketch.matrix import side_by_side
from sparseinfer.kernels.sketch.reference import Estimator


def module_estimator(gate: nn.Module, up: nn.Module, bits: int, *, phi: str, psi: str) -> Estimator:
    """What a sketch of so many bits makes of the neurons, by the quantiser of the engine.

    Args:
        gate, up: linear, with fp32 weights; what they are now is sketched.
    """
    copies = side_by_side(_matrix(gate), _matrix(up), bits)
    return Estimator(Sketch(*copies), phi=phi, psi=psi, gate_bias=_bias(gate), up_bias=_bias(up))


def _matrix(projection: nn.Module) -> Matrix:
    return Matrix.of(projection.get_parameter("weight").detach())


def _bias(projection: nn.Module) -> Tensor | None:
    bias = getattr(projection, "bias", None)
    return None if bias is None else bias.detach()
