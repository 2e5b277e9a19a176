"""What FFNs compute on their gate values while they are trained, with gradients.

Each is a function of the gate values and of the part of the run that is over: some training aids
end before the run does, so that the last steps train what the result computes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import relu, silu

from sparseinfer.finetune.settings import ObjectiveSettings

Activation = Callable[[Tensor], Tensor]


def relu2(x: Tensor) -> Tensor:
    """max(0, x)^2 (ReLU^2 Wins, 2402.03804, section 3)."""
    a = relu(x)
    return a * a  # as a power autocast would compute it, and keep h, in fp32 on a GPU


@dataclass(frozen=True)
class Stochastic:
    """ReLU from 0 on; below, SiLU with probability `p`, else 0 (2509.22358, section 3).

    One draw per element, from torch's default generator of the device: gradients flow through the
    negative side as often as SiLU is drawn.
    """

    p: float

    def __call__(self, x: Tensor) -> Tensor:
        drawn = torch.rand_like(x, dtype=torch.float32) < self.p
        return torch.where((x < 0) & drawn, silu(x), relu(x))


@dataclass(frozen=True)
class SoftThreshold:
    """relu(x - tau), at most `clip` (CReLU of 2402.16184, section 4): 0 below tau, m above tau + m.

    Clipping bounds what a shifted ReLU, whose outputs' variance grows with tau, sends on.
    """

    tau: float
    clip: float | None = None

    def __call__(self, x: Tensor) -> Tensor:
        return torch.clamp(x - self.tau, min=0.0, max=self.clip)


@dataclass(frozen=True)
class StraightThroughTopK:
    """relu(x) of the `k` largest of a row, 0 elsewhere; backward, that of relu(x) for all.

    The mask is taken as a constant that is 1 everywhere by the backward pass (straight-through, as
    Q-Sparse, 2407.10969, section 2.3): neurons that were left out learn to come in.
    """

    k: int

    def __call__(self, x: Tensor) -> Tensor:
        a = relu(x)
        if self.k >= x.shape[-1]:
            return a
        return _KeepLargest.apply(a, self.k)  # pyright: ignore[reportReturnType]


class _KeepLargest(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, k: int) -> Tensor:  # noqa: ARG004
        kept = a.topk(k, dim=-1).indices
        return torch.zeros_like(a).scatter_(-1, kept, a.gather(-1, kept))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004
        return gradients[0], None


@dataclass(frozen=True)
class Phases:
    """Activation of the run's first part, and of its last.

    Attributes:
        first: what steps before `switch` train.
        last: what the result computes.
        switch: part of the run, in [0, 1], after which `last` is trained.
    """

    first: Activation
    last: Activation
    switch: float = 0.0

    def at(self, part: float) -> Activation:
        """
        Args:
            part: steps done over all steps.
        """
        return self.first if part < self.switch else self.last


def phases(settings: ObjectiveSettings) -> Phases:
    """Gate activations of an objective whose settings were checked."""
    if settings.objective == "stochastic":
        assert settings.stochastic_p is not None
        assert settings.relu_fraction is not None
        return Phases(Stochastic(settings.stochastic_p), relu, 1 - settings.relu_fraction)
    if settings.objective == "clipped":
        tau, fraction = settings.soft_threshold, settings.relu_fraction
        assert tau is not None
        assert fraction is not None
        return Phases(SoftThreshold(tau, settings.clip), SoftThreshold(tau), 1 - fraction)
    if settings.objective == "topk":
        assert settings.top_k is not None
        same = StraightThroughTopK(settings.top_k)
        return Phases(same, same)
    same = relu2 if settings.act == "relu2" else relu
    return Phases(same, same)
