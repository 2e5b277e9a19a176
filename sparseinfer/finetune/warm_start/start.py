"""Where fitting begins: the dense FFN's matrices, brought to the size of the new activation."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from sparseinfer.finetune.warm_start.ffn import Ffn
from sparseinfer.kernels.gated_ffn.activations import activation

_SAMPLE = 8192
"""Rows that say how large a neuron's values are."""


def converted(dense: Ffn, x: Tensor, *, phi: str, psi: str) -> Ffn:
    """The dense FFN with another activation, each neuron as near to what it was as scale and sign
    can bring it (least squares over its outputs).

    dReLU keeps one sign of u: each neuron keeps that which carries more, up and down change sign
    where it is the negative one.

    Args:
        dense: an FFN with SiLU.
        x: its inputs, fp32 [N, H]; of many, some thousand evenly spread ones are looked at.
    """
    x = x[:: max(1, len(x) // _SAMPLE)]
    neurons = len(dense.gate)
    cross, own = torch.zeros(2, neurons), torch.zeros(2, neurons)
    for block in x.split(1024):
        g = linear(block, dense.gate, dense.gate_bias)
        u = linear(block, dense.up, dense.up_bias)
        old, new = silu(g) * u, activation(phi, g)
        for side, sign in enumerate((1, -1)):
            # The sign goes to up and to down, so the neuron's output is new * relu(+-u) * (+-1).
            h = new * (u if psi == "id" else sign * torch.relu(sign * u))
            cross[side] += (old * h).sum(0)
            own[side] += h.square().sum(0)
    sign = torch.ones(neurons)
    if psi == "relu" and dense.up_bias is None:
        # What is explained of the old output.
        explained = cross.square() / own.clamp_min(1e-30)
        sign = torch.where(explained[1] > explained[0], -1.0, 1.0)
    cross, own = (torch.where(sign > 0, both[0], both[1]) for both in (cross, own))
    scale = torch.where(own > 0, cross / own.clamp_min(1e-30), 1.0).clamp(1e-3, 1e3)
    if phi == "relu2" and dense.gate_bias is None:
        # h grows with the square of the gate: as much of the scale there keeps both in step.
        return replace(
            dense,
            gate=dense.gate * scale.sqrt()[:, None],
            up=dense.up * sign[:, None],
            down=dense.down * sign,
            phi=phi,
            psi=psi,
        )
    return replace(
        dense,
        up=dense.up * sign[:, None],
        down=dense.down * (sign * scale),
        phi=phi,
        psi=psi,
    )
