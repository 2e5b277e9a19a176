"""Fits one FFN to its rows by AdamW on all three matrices."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sparseinfer.errors import CalibrationError
from sparseinfer.finetune.warm_start.ffn import Ffn, Step
from sparseinfer.finetune.warm_start.recipe import Recipe
from sparseinfer.finetune.warm_start.rows import Rows

_BETAS = (0.9, 0.99)
_WARM_UP = 0.05
"""Part of the steps in which the learning rate rises."""


@torch.no_grad()
def fit(
    ffn: Ffn,
    rows: Rows,
    recipe: Recipe,
    *,
    dtype: torch.dtype,
    seed: int,
    progress: Callable[[int], None],
) -> Ffn:
    """
    Args:
        ffn: where to begin.
        rows: to fit on.
        dtype: of matrix products in steps; weights, gradients' sums and AdamW are fp32.
        seed: of the order of tokens.
        progress: called with the tokens fitted on so far, repetitions counted.

    Raises:
        CalibrationError: the error is not finite.
    """
    step = Step(ffn, dtype)
    optimizer = torch.optim.AdamW(
        [{"params": [one], "lr": 0.0, "size": _size(one)} for one in step.parameters],
        lr=0.0,
        betas=_BETAS,
        eps=1e-12,
        weight_decay=0.0,
        fused=True,
    )
    generator = torch.Generator().manual_seed(seed)
    batch = min(recipe.batch, len(rows))
    per_epoch = len(rows) // batch
    steps = recipe.epochs * per_epoch
    done, seen = 0, 0.0
    for _ in range(recipe.epochs):
        order = torch.randperm(len(rows), generator=generator)[: per_epoch * batch]
        for chosen in order.split(batch):
            part = done / steps
            rate = recipe.rate * min(1.0, (part + 1 / steps) / _WARM_UP)
            rate *= 0.5 * (1 + math.cos(math.pi * part))
            for group in optimizer.param_groups:
                group["lr"] = rate * group["size"]
            seen = step.set_gradients(
                rows.x[chosen], rows.target[chosen], rows.weight[chosen], l1=recipe.l1
            )
            if not math.isfinite(seen):
                raise CalibrationError(
                    "the warm start diverges: the error of a layer's fit is not finite; take "
                    "another text or seed, or begin without it (--no-warm-start)"
                )
            optimizer.step()
            done += 1
            if done % 16 == 0 or done == steps:
                progress(done * batch)
    return step.ffn()


def _size(matrix: Tensor) -> float:
    return float(matrix.square().mean().sqrt())


@torch.no_grad()
def measure(ffn: Ffn, rows: Rows) -> tuple[float, float]:
    """Weighted squared error, as a part of the weighted squared targets, and neuron sparsity."""
    error = wanted = resting = 0.0
    for block in rows.blocks():
        missing = ffn.output(block.x) - block.target
        error += float((block.weight[:, None] * missing.square()).sum(dtype=torch.float64))
        wanted += float((block.weight[:, None] * block.target.square()).sum(dtype=torch.float64))
        resting += float((ffn.gates(block.x) == 0).sum())
    return error / max(wanted, 1e-30), resting / (len(rows) * len(ffn.gate))
