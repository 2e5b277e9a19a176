"""down in closed form: once the neurons are what they are, the best output is least squares."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sparseinfer.finetune.warm_start.ffn import Ffn
from sparseinfer.finetune.warm_start.rows import Rows


def with_best_down(ffn: Ffn, rows: Rows, ridge: float) -> Ffn:
    """The FFN whose down minimises the weighted squared error on the rows, and how far each
    neuron's column goes from what it was:

        sum_t w_t norm(D h_t - target_t)^2 + ridge sum_i m_i norm(D_i - D0_i)^2

    with m_i = sum_t w_t h_ti^2.

    Neurons that fire rarely are seen rarely, and change little; those that never fire, not at all.
    """
    neurons = ffn.down.shape[1]
    moments = torch.zeros(neurons, neurons)
    missing = torch.zeros(neurons, len(ffn.down))
    for block in rows.blocks():
        h = ffn.neurons(block.x)
        weighted = h * block.weight[:, None]
        moments.addmm_(weighted.T, h)
        missing.addmm_(weighted.T, block.target - torch.nn.functional.linear(h, ffn.down))
    change = _solve(moments.double(), missing.double(), ridge)
    return replace(ffn, down=ffn.down + change.T.float())


def _solve(moments: Tensor, right: Tensor, ridge: float) -> Tensor:
    own = moments.diagonal()
    own += ridge * own + 1e-6 * own.mean() + torch.finfo(torch.float32).tiny
    factor, _ = torch.linalg.cholesky_ex(moments)
    return torch.cholesky_solve(right, factor)
