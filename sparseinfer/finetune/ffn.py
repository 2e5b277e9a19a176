"""The FFN that is trained: transformers' own matrices, our activation, and what it says of itself.

In place of `layer.mlp` it keeps the names of its tensors. While a `Record` is open each pass adds
to it: the L1 norm of the neurons' outputs and the FFN's distance from the parent's, as parts of the
loss, and counts of neurons at rest. Nothing is stored for that beyond what the backward pass keeps
anyway, h itself; a pass that is computed again (gradient checkpointing) finds it closed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from sparseinfer.finetune.activations import Activation


class Record:
    """What the FFNs of one pass add up, in the order of the layers."""

    def __init__(self) -> None:
        self.open = False
        self.l1: list[Tensor] = []
        self.distance: list[Tensor] = []
        self.gate_rest: list[Tensor] = []
        self.down_rest: list[Tensor] = []

    @contextmanager
    def collect(self) -> Iterator[Record]:
        """Empties the record, and fills it within the block."""
        for part in (self.l1, self.distance, self.gate_rest, self.down_rest):
            part.clear()
        self.open = True
        try:
            yield self
        finally:
            self.open = False

    def resting(self) -> Tensor:
        """fp32 [2, L]: fraction of neurons whose gate is at rest, and of those whose output is 0
        (dReLU rests more often there)."""
        return torch.stack((torch.stack(self.gate_rest), torch.stack(self.down_rest)))


class TrainedFfn(nn.Module):
    """y = (phi(x W_gate) psi(x W_up)) W_down.

    Attributes:
        activation: phi; may be changed between passes.
    """

    def __init__(
        self,
        mlp: nn.Module,
        activation: Activation,
        record: Record,
        *,
        up_relu: bool = False,
        with_l1: bool = False,
        rests: bool = True,
        parent: nn.Module | None = None,
    ) -> None:
        """
        Args:
            mlp: transformers' gated MLP; its three projections are used.
            up_relu: psi is ReLU (dReLU), else the identity.
            rests: the result is at rest wherever phi is not above 0: so for ReLUs, also while
                something else stands in for them below 0; not for SiLU.
            with_l1: record the L1 norm.
            parent: the dense parent's MLP of this layer, to be compared with at the same inputs.
        """
        super().__init__()
        self.gate_proj = mlp.get_submodule("gate_proj")
        self.up_proj = mlp.get_submodule("up_proj")
        self.down_proj = mlp.get_submodule("down_proj")
        self.activation = activation
        self._up_relu = up_relu
        self._with_l1 = with_l1
        self._rests = rests
        self._record = record
        # In a list: its weights are neither this module's nor trained.
        self._parent: list[Any] = [parent]

    def forward(self, x: Tensor) -> Tensor:
        """
        Args:
            x: [..., H].

        Returns:
            [..., H].
        """
        a = self.activation(self.gate_proj(x))
        u = self.up_proj(x)
        h = a * (relu(u) if self._up_relu else u)
        y = self.down_proj(h)
        # Also where nobody listens: a pass that is computed again must save what the first one did.
        l1 = l1_norm(h) / h.numel() if self._with_l1 else None
        distance = self._distance(x, y)
        if self._record.open:
            self._add(a, h, l1, distance)
        return y

    def _distance(self, x: Tensor, y: Tensor) -> Tensor | None:
        parent = self._parent[0]
        if parent is None:
            return None
        with torch.no_grad():
            wanted = parent(x.detach())
        return relative_error(y, wanted)

    def _add(self, a: Tensor, h: Tensor, l1: Tensor | None, distance: Tensor | None) -> None:
        record = self._record
        if l1 is not None:
            record.l1.append(l1)
        if distance is not None:
            record.distance.append(distance)
        with torch.no_grad():
            gate_rest = _part((a <= 0) if self._rests else (a == 0))
            record.gate_rest.append(gate_rest)
            record.down_rest.append(_part(h == 0) if self._up_relu else gate_rest)


def _part(where: Tensor) -> Tensor:
    """fp32: fraction that is true."""
    return where.mean(dtype=torch.float32)


def l1_norm(h: Tensor) -> Tensor:
    """Sum of |h| as fp32, whose backward needs h and nothing else of its size."""
    return h.abs().sum(dtype=torch.float32)


def relative_error(y: Tensor, wanted: Tensor) -> Tensor:
    """fp32: norm(y - wanted)^2 / norm(wanted)^2, over all tokens together."""
    wanted = wanted.float()
    return (y.float() - wanted).square().sum() / wanted.square().sum().clamp_min(1e-12)
