"""What a model takes as 0: for one layer, and for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class LayerMask:
    """What one layer takes as 0; by default nothing.

    Attributes:
        gate: threshold fp32 [I] on |phi(x W_gate)|, or with a sketch on its estimates of
            |phi(x W_gate) psi(x W_up)|; or None.
        inputs: projection (q, k, v, o, gate, up, down) -> threshold fp32 [inputs] on |x|.
        top_k: most neurons that a token keeps, or None.
        sketch: bits of the sketch that estimates neurons, or None.
    """

    gate: Tensor | None = None
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    top_k: int | None = None
    sketch: int | None = None


@dataclass(frozen=True)
class Masks:
    """What all layers take as 0; by default nothing.

    Attributes:
        gate: one threshold [I] per layer, or None.
        inputs: projection -> one threshold [inputs] per layer.
        top_k, sketch: the same for all layers, or None.
    """

    gate: list[Tensor] | None = None
    inputs: dict[str, list[Tensor]] = field(default_factory=dict)
    top_k: int | None = None
    sketch: int | None = None

    @classmethod
    def of(cls, layers: Sequence[LayerMask]) -> Masks:
        """
        Raises:
            ValueError: layers whose masks are not of one kind.
        """
        first = layers[0]
        for layer in layers:
            if (layer.gate is None) != (first.gate is None):
                raise ValueError("only some layers have thresholds on the gate")
            if layer.inputs.keys() != first.inputs.keys():
                raise ValueError("layers have thresholds on the inputs of different projections")
            if layer.top_k != first.top_k:
                raise ValueError("layers differ in top_k")
            if layer.sketch != first.sketch:
                raise ValueError("layers differ in their sketch")
        gates = [layer.gate for layer in layers if layer.gate is not None]
        return cls(
            gates or None,
            {name: [layer.inputs[name] for layer in layers] for name in first.inputs},
            first.top_k,
            first.sketch,
        )
