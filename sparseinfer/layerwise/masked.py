"""A transformers decoder layer that computes a converted model's function, and can be watched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from sparseinfer.kernels.gated_ffn.activations import activation, up_activation
from sparseinfer.kernels.input_mask import mask_inputs
from sparseinfer.layerwise.sketched import module_estimator

MODULES = {
    **{name: f"self_attn.{name}_proj" for name in ("q", "k", "v", "o")},
    **{name: f"mlp.{name}_proj" for name in ("gate", "up", "down")},
}
"""Projection -> its module in a decoder layer of transformers."""

_NORMS = ("input_layernorm", "post_attention_layernorm")


@dataclass(frozen=True)
class Rules:
    """What a model computes in its FFNs, and which neurons and inputs it takes as 0.

    Attributes:
        phi, psi: activations of gate and up.
        shift: taken from the gate value before phi.
        input_relu: a ReLU follows each norm that feeds attention or FFN.
        thresholds: on |phi(g)|, or with a sketch on its estimates of |phi(g) psi(u)|, one [I] per
            layer; empty for none.
        top_k: of those only so many of a token, with the largest |phi(g)|; None for all.
        inputs: thresholds on the inputs of projections (q, k, v, o, gate, up, down), one [in] per
            layer.
        sketch: bits of the low-bit copies of gate and up whose estimates decide; None where
            |phi(g)| does.
    """

    phi: str
    psi: str
    shift: float = 0.0
    input_relu: bool = False
    thresholds: Sequence[Tensor] = ()
    top_k: int | None = None
    inputs: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)
    sketch: int | None = None

    def activation_alone(self) -> Rules:
        """The same activation, and no mask of any kind."""
        return Rules(self.phi, self.psi, self.shift, self.input_relu)


class FfnPass(NamedTuple):
    """What one FFN did with T tokens."""

    active: Tensor
    """bool [T, I]: neurons that counted."""
    h: Tensor
    """fp32 [T, I]: the input of down, 0 where a neuron did not count."""
    kept: Tensor
    """fp32 [T, H]: the output, without bias."""
    lost: Callable[[], Tensor]
    """Computes `dropped`."""
    x: Tensor
    """fp32 [T, H]: the input."""

    @property
    def dropped(self) -> Tensor:
        """fp32 [T, H]: what the output without any mask has more, at the same input."""
        return self.lost()


@contextmanager
def masked(
    layer: nn.Module, index: int, rules: Rules, watch: Callable[[FfnPass], None]
) -> Iterator[None]:
    """Makes a decoder layer of transformers follow the rules of layer `index` within the block.

    Args:
        watch: called with every pass of its FFN.
    """
    mlp: Any = layer.get_submodule("mlp")
    ffn = _Ffn(mlp, index, rules, watch)
    hooks = []
    for part in ("q", "k", "v", "o"):
        if part in rules.inputs:
            projection = layer.get_submodule(MODULES[part])
            hooks.append(projection.register_forward_pre_hook(InputMask(rules.inputs[part][index])))
    if rules.input_relu:
        hooks += [layer.get_submodule(name).register_forward_hook(_relu) for name in _NORMS]
    mlp.forward = ffn
    try:
        yield
    finally:
        del mlp.forward
        for hook in hooks:
            hook.remove()


class InputMask:
    """Forward pre-hook that takes inputs below a threshold as 0."""

    def __init__(self, threshold: Tensor) -> None:
        self._threshold = threshold

    def __call__(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        rows = inputs[0].reshape(-1, inputs[0].shape[-1])
        masked, _ = mask_inputs(rows, self._threshold)
        return (masked.view(inputs[0].shape), *inputs[1:])


def _relu(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
    return torch.relu(output)


def _over(x: Tensor, threshold: Tensor | None) -> Tensor:
    return x if threshold is None else torch.where(x.abs() < threshold, 0.0, x)


class _Ffn:
    """The forward of an MLP under the rules of one layer."""

    def __init__(
        self, mlp: Any, index: int, rules: Rules, watch: Callable[[FfnPass], None]
    ) -> None:
        self._gate, self._up, self._down = mlp.gate_proj, mlp.up_proj, mlp.down_proj
        self._rules = rules
        self._watch = watch
        self._threshold = rules.thresholds[index] if rules.thresholds else None
        self._inputs = {part: vectors[index] for part, vectors in rules.inputs.items()}
        self._estimate = None
        if rules.sketch is not None:
            self._estimate = module_estimator(
                self._gate, self._up, rules.sketch, phi=rules.phi, psi=rules.psi
            )

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        a = self._activated_gate(_over(rows, self._inputs.get("gate")))
        u = self._activated_up(_over(rows, self._inputs.get("up")))
        keep = self._keep(rows, a)
        h = _over(torch.where(keep, a * u, 0.0), self._inputs.get("down"))
        active = h != 0 if "down" in self._inputs else keep
        kept = linear(h, self._down.weight)

        def lost() -> Tensor:
            whole = a * u
            if "gate" in self._inputs or "up" in self._inputs:
                whole = self._activated_gate(rows) * self._activated_up(rows)
            return linear(whole - h, self._down.weight)

        self._watch(FfnPass(active, h, kept, lost, rows))
        y = kept if self._down.bias is None else kept + self._down.bias
        return y.view(x.shape)

    def _activated_gate(self, rows: Tensor) -> Tensor:
        return activation(self._rules.phi, self._gate(rows) - self._rules.shift)

    def _activated_up(self, rows: Tensor) -> Tensor:
        return up_activation(self._rules.psi, self._up(rows))

    def _keep(self, rows: Tensor, a: Tensor) -> Tensor:
        magnitudes = a.abs()
        keep = a != 0
        if self._threshold is not None:
            decides = magnitudes if self._estimate is None else self._estimate(rows)
            keep &= decides >= self._threshold
        k = self._rules.top_k
        if k is not None and k < a.shape[1]:
            # Stable: of equal values the one with the lower index stays.
            order = torch.where(keep, magnitudes, -1.0).sort(dim=1, descending=True, stable=True)
            keep &= torch.zeros_like(keep).scatter_(1, order.indices[:, :k], True)
        return keep
