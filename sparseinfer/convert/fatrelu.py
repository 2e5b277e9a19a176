"""FATReLU: x where x >= t, else 0."""

import torch

from sparseinfer.convert.method import Method, UpStatistics


def _uniform(up: UpStatistics) -> torch.Tensor:
    return torch.ones_like(up.mean_abs)


METHOD = Method(
    name="fatrelu",
    source="ProSparse (2402.13516), step 3",
    hidden_act="relu",
    scores={"relu": _uniform},
    needs_sparsity=False,
    needs_finetuning=True,
    elsewhere="plain ReLU, without the threshold",
    constant=0.01,
)
