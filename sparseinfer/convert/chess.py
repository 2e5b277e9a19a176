"""CHESS: channel-wise thresholds. A gate value counts as much as its up value is large on average.

Two published scores: `l1`, |a_i| E|u_i|, and `l2`, a_i^2 E[u_i^2] (here its square root, which
orders neurons the same).
"""

import torch

from sparseinfer.convert.method import Method, UpStatistics


def _l1(up: UpStatistics) -> torch.Tensor:
    return up.mean_abs


def _l2(up: UpStatistics) -> torch.Tensor:
    return up.mean_square.sqrt()


METHOD = Method(
    name="chess",
    source="CHESS (2409.01366)",
    hidden_act=None,
    scores={"l1": _l1, "l2": _l2},
    needs_sparsity=True,
    needs_finetuning=False,
    elsewhere="the dense parent: thresholds are ignored",
)
