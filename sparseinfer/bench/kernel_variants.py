"""What is done with the weights of one gated FFN when it is timed alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from sparseinfer.bench.planted_predictors import WINDOW, WINDOWS, predictors_of
from sparseinfer.bench.settings import PLANTED_RULES
from sparseinfer.checkpoint import Checkpoint
from sparseinfer.kernels.gated_ffn import FfnWeights
from sparseinfer.kernels.lowrank import LowRank
from sparseinfer.kernels.sign import SignBits


@dataclass(frozen=True)
class Variant:
    """What is done with one layer's weights.

    Attributes:
        rule, sparsity, quality: as in `kernel.KernelRow`.
        changes: to the fields of `FfnWeights`.
    """

    rule: str | None
    sparsity: float
    changes: Mapping[str, Any]
    quality: Mapping[str, float] = field(default_factory=dict)

    def of(self, layer: FfnWeights) -> FfnWeights:
        return replace(layer, **self.changes)


Predictors = Mapping[str, tuple[LowRank | SignBits, Mapping[str, float]]]
"""Kind -> predictor, and fields of `predictors.metrics.Quality`."""


def predictors_for(checkpoint: Checkpoint, rules: Sequence[str]) -> Predictors:
    """Of a checkpoint's one layer, those that rules ask for: none where it is not planted."""
    kinds = [rule for rule in rules if rule in PLANTED_RULES]
    if not kinds:
        return {}
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(checkpoint.config.vocab_size, (WINDOWS * WINDOW,), generator=generator)
    found = predictors_of(checkpoint, ids.tolist(), kinds)
    return {kind: (one[0][0], one[1][0].model_dump()) for kind, one in found.items()}


def variants(
    layer: FfnWeights, planted: float | None, sparsity: Sequence[float], predictors: Predictors
) -> list[Variant]:
    """In the order of their rows.

    Args:
        planted: sparsity of planted weights, which takes the place of `sparsity`; None for others.
    """
    if planted is None:
        return [
            Variant("neurons", one, {"threshold": _mask(layer.intermediate, one)})
            for one in sparsity
        ]
    # ReLUs rest whatever the threshold is: what is never 0 stands in for them.
    found = [Variant(None, 0.0, {"phi": "silu"}), Variant("neurons", planted, {})]
    for kind, (predictor, quality) in predictors.items():
        found.append(Variant(kind, planted, {"predictor": predictor}, quality))
    return found


def _mask(neurons: int, sparsity: float) -> Tensor:
    """A threshold of infinity for a random share of the neurons, 0 for the others."""
    order = torch.randperm(neurons, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(neurons)
    mask[order[: round(sparsity * neurons)]] = torch.inf
    return mask
