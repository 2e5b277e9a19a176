"""What a sketch of one layer estimates on the calibration tokens."""

from __future__ import annotations

from torch import Tensor, nn

from sparseinfer.convert.signal import Signal
from sparseinfer.convert.some_rows import SomeRows
from sparseinfer.kernels.sketch.reference import Estimator


class Estimates:
    """Estimates |phi(g^) psi(u^)| of a layer's neurons, in memory that does not grow with the
    tokens.

    Attributes:
        signal: a sample of them.
        some: those of some tokens, [n, I].
    """

    def __init__(self, estimate: Estimator, signal: Signal, some: SomeRows) -> None:
        self._estimate = estimate
        self.signal = signal
        self.some = some

    def add(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Forward pre-hook on the gate: takes what its input is estimated to give."""
        found = self._estimate(inputs[0].reshape(-1, inputs[0].shape[-1]))
        self.signal.add(found)
        self.some.add(found)
