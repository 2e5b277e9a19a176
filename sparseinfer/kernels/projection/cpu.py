"""The compiled handle on a linear layer of either layout."""

from __future__ import annotations

from sparseinfer.kernels.handles import native_matrix
from sparseinfer.kernels.isa import native
from sparseinfer.kernels.projection import Projection


def native_projection(projection: Projection):
    """A handle for the decode step, which keeps the weights alive.

    Raises:
        ValueError: weights that are not on the CPU.
        ImportError: the native kernels are not built.
    """
    vectors = (projection.bias, projection.threshold)
    return native().Projection(
        native_matrix(projection.weight),
        *(None if vector is None else vector.detach() for vector in vectors),
        by_input=projection.by_input,
    )
