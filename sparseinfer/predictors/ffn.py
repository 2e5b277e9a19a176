"""The weights of one layer's FFN, for what training and metrics compute with them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

from sparseinfer import arch
from sparseinfer.checkpoint import Checkpoint
from sparseinfer.config import TORCH_NAMES, DTypeName
from sparseinfer.kernels.gated_ffn.reference import activation, up_activation
from sparseinfer.layerwise import Rules


@dataclass(frozen=True)
class LayerFfn:
    """One layer.

    Attributes:
        gate, up: fp32 [I, H].
        down: fp32 [H, I].
        gate_bias, up_bias: fp32 [I] or None.
    """

    gate: Tensor
    up: Tensor
    down: Tensor
    gate_bias: Tensor | None
    up_bias: Tensor | None
    phi: str
    psi: str
    shift: float

    @classmethod
    def read(
        cls, checkpoint: Checkpoint, layer: int, rules: Rules, *, dtype: DTypeName
    ) -> LayerFfn:
        """Reads a layer, its weights rounded to `dtype`."""
        names = {
            (part, kind): arch.ffn_name(layer, part, kind)
            for part in ("gate", "up", "down")
            for kind in ("weight", "bias")
        }
        present = [name for name in names.values() if name in checkpoint.tensors]
        round_to = getattr(torch, TORCH_NAMES[dtype])
        # A copy, also where nothing is rounded: stored tensors are views of the file.
        read = {
            name: tensor.to(round_to).to(torch.float32, copy=True)
            for name, tensor in checkpoint.read(present)
        }
        return cls(
            gate=read[names["gate", "weight"]],
            up=read[names["up", "weight"]],
            down=read[names["down", "weight"]],
            gate_bias=read.get(names["gate", "bias"]),
            up_bias=read.get(names["up", "bias"]),
            phi=rules.phi,
            psi=rules.psi,
            shift=rules.shift,
        )

    def outputs(self, x: Tensor, active: Tensor) -> Tensor:
        """The input of down, fp32 [T, I], for x [T, H] fp32 with neurons `active` bool [T, I]."""
        a = activation(self.phi, linear(x, self.gate, self.gate_bias) - self.shift)
        u = up_activation(self.psi, linear(x, self.up, self.up_bias))
        return torch.where(active, a * u, 0.0)
