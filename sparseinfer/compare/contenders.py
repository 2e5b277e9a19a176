"""What can be compared: every method that is calibrated, its published variants, and the oracle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sparseinfer.convert.curve import LayerCurve
from sparseinfer.convert.method import TargetKind
from sparseinfer.convert.methods import METHODS
from sparseinfer.convert.options import MethodOptions
from sparseinfer.convert.oracle import oracle_curve
from sparseinfer.convert.statistics import LayerStatistics
from sparseinfer.kernels.matrix import Format
from sparseinfer.kernels.sketch import check_sketch


@dataclass(frozen=True)
class Contender:
    """A way to choose what a layer takes as 0.

    Attributes:
        curve: from a layer's statistics to its masks.
        counts: what its own sparsity counts.
        bound: a limit to compare with, which no engine can run.
        sketch_bits: of the sketch that it runs with, or None.
    """

    name: str
    curve: Callable[[LayerStatistics], LayerCurve]
    counts: TargetKind
    bound: bool = False
    sketch_bits: int | None = None

    def unfit(self, format: Format) -> str | None:
        """Why it cannot run with weights of a format; None where it can."""
        if self.sketch_bits is None:
            return None
        try:
            check_sketch(self.sketch_bits, format)
        except ValueError as error:
            return str(error)
        return None


_VARIANTS = {
    "cats": ("cats", MethodOptions()),
    "chess": ("chess", MethodOptions()),
    "chess-l2": ("chess", MethodOptions(chess_score="l2")),
    "chess-attention": ("chess", MethodOptions(attention=True)),
    "topk": ("topk", MethodOptions()),
    "teal": ("teal", MethodOptions()),
    "teal-uniform": ("teal", MethodOptions(within_block="uniform")),
    "wina": ("wina", MethodOptions()),
    "wina-uniform": ("wina", MethodOptions(within_block="uniform")),
    "sketch": ("sketch", MethodOptions()),
    "sketch-3": ("sketch", MethodOptions(sketch_bits=3)),
    "sketch-2": ("sketch", MethodOptions(sketch_bits=2)),
}
"""Name -> method and its options."""


def _contender(name: str, method: str, options: MethodOptions) -> Contender:
    chosen = METHODS[method]
    make = chosen.curve
    assert make is not None  # only calibrated methods are listed
    bits = chosen.sketch_bits(options)
    return Contender(name, lambda layer: make(layer, options), chosen.target, sketch_bits=bits)


CONTENDERS = {
    **{name: _contender(name, *how) for name, how in _VARIANTS.items()},
    "oracle": Contender("oracle", oracle_curve, "neurons", bound=True),
}
