"""CATS: one threshold per layer on |phi(x W_gate)|, its quantile over calibration tokens."""

import torch

from sparseinfer.convert.method import Method, UpStatistics


def _uniform(up: UpStatistics) -> torch.Tensor:
    return torch.ones_like(up.mean_abs)


METHOD = Method(
    name="cats",
    source="CATS (2404.08763)",
    hidden_act=None,
    scores={"gate": _uniform},
    needs_sparsity=True,
    needs_finetuning=False,
    elsewhere="the dense parent: thresholds are ignored",
)
