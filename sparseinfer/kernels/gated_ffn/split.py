"""A layer whose hot neurons are on the GPU and whose cold ones on the CPU; both compute at once.

A decode step with such layers is no single CUDA graph: the host has work in the middle of each.
`SplitFfn.steps` is a generator that stops where the host's turn is, and gives what it has to do.
Work of a whole model that calls it with `yield from` stops there too, so that what lies between two
stops can be captured as one graph (`kernels.segments`):

    ... norm, question sent | mark | hot neurons | CPU computes | answer added, next layer ...

A layer that is all hot does not stop.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from sparseinfer.kernels.gated_ffn import FfnOutput
from sparseinfer.kernels.gated_ffn.cold import ColdFfn
from sparseinfer.kernels.segments import Steps, run


class SplitFfn:
    """A layer in two parts; call it with x [B, H] fp32 on the GPU.

    Args:
        hot: computes the neurons on the GPU; None where there are none.
        cold: computes the others; None where there are none.

    Both together have every neuron, and the bias of down once. The bits of a result are those that
    the parts have, the cold one's added to the hot one's.

    Raises:
        ValueError: neither part.
    """

    def __init__(
        self, hot: Callable[[Tensor], FfnOutput] | None, cold: ColdFfn | None = None
    ) -> None:
        if hot is None and cold is None:
            raise ValueError("a layer needs a hot part, a cold one, or both")
        self.hot = hot
        self.cold = cold

    def __call__(self, x: Tensor) -> FfnOutput:
        """y [B, H] fp32 and counts on the device of x; waits for the GPU where a part is cold.

        Raises:
            ValueError: `x` does not fit.
        """
        return run(self.steps(x))

    def steps(self, x: Tensor) -> Steps[FfnOutput]:
        """The same piece by piece; the caller does what it is given before it goes on."""
        rows = x.shape[0]
        if self.cold is not None:
            self.cold.ask(x)
            yield self.cold.mark
        found = None if self.hot is None else self.hot(x)
        if self.cold is None:
            assert found is not None  # checked when made
            return found
        yield partial(self.cold.compute, rows)
        return added(found, self.cold.landed(rows))


def added(hot: FfnOutput | None, cold: FfnOutput) -> FfnOutput:
    """Outputs of two parts, in memory of their own."""
    if hot is None:
        inputs, gates = (None if one is None else one.clone() for one in cold[2:])
        return FfnOutput(cold.y.clone(), cold.counts.clone(), inputs, gates)
    return FfnOutput(
        hot.y + cold.y,
        hot.counts + cold.counts,
        None if hot.inputs is None or cold.inputs is None else hot.inputs + cold.inputs,
        None if hot.gates is None or cold.gates is None else hot.gates + cold.gates,
    )


__all__ = ["SplitFfn", "added"]
