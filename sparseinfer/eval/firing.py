"""Which neurons fire, how many per token, and what is lost by the ones that do not, per layer.

Found in a pass of its own over some thousand tokens through transformers' own layers, one layer in
memory at a time: what is kept per layer is one count per neuron and one fraction per token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.checkpoint.layout import Progress, no_progress
from sparseinfer.config import DTypeName
from sparseinfer.layerwise import ANY_ACTIVATION, FfnPass, LayerwiseModel, Rules, masked

DEFAULT_TOKENS = 4096
HOT = 0.5
"""A neuron is hot that fires for at least this fraction of tokens."""
BINS = 128
DECILES = tuple(tenth / 10 for tenth in range(11))
"""Of distributions; the first is the minimum, the last the maximum."""


@dataclass(frozen=True)
class LayerFiring:
    """One layer's FFN on the measured tokens. A neuron fires where no mask takes it as 0."""

    dead: float
    """Fraction of neurons that never fire."""
    hot: float
    """Fraction of neurons that fire for at least half of the tokens."""
    active_mean: float
    """Fraction of neurons that fire for a token: mean over tokens,"""
    active_std: float
    """standard deviation,"""
    active_deciles: tuple[float, ...]
    """and minimum, nine deciles, maximum."""
    rates: tuple[float, ...]
    """Fraction of tokens that neurons fire for, the most active first: means of at most `BINS`
    groups of as equal sizes as can be."""
    cett: float
    """norm(output that masks take away) / norm(output without masks), same input, mean over tokens
    (the sum of dropped neurons' outputs in Sparsing Law, 2411.02335; with thresholds on inputs of
    gate or up also what the neurons that stay lose)."""


@dataclass(frozen=True)
class Firing:
    """All layers, on the beginning of the evaluated text."""

    tokens: int
    context: int
    """Tokens of a window."""
    layers: tuple[LayerFiring, ...]


def measure_firing(
    checkpoint: Checkpoint,
    rules: Rules,
    windows: Tensor,
    *,
    dtype: DTypeName,
    progress: Progress = no_progress,
) -> Firing:
    """Runs windows of token ids [W, T] through the model, masks applied, in fp32 arithmetic.

    Args:
        dtype: weights are rounded to this type first.
    """
    config = checkpoint.config
    model = LayerwiseModel(checkpoint, hidden_act=ANY_ACTIVATION, dtype=dtype)
    layers = []
    done, total = 0, config.num_layers * len(windows)
    for index, passes in model.run(windows):
        counts = LayerCounts(config.intermediate_size)
        with masked(model.layer, index, rules, counts.add):
            for _ in passes:
                done += 1
                progress("watching neurons", done, total)
        layers.append(counts.summary())
    return Firing(windows.numel(), windows.shape[1], tuple(layers))


class LayerCounts:
    """Sums over the passes of one layer."""

    def __init__(self, neurons: int) -> None:
        self._fired = torch.zeros(neurons, dtype=torch.int64)
        self._active: list[Tensor] = []
        self._cett = 0.0

    def add(self, ffn: FfnPass) -> None:
        self._fired += ffn.active.sum(0)
        self._active.append(ffn.active.double().mean(1))
        self._cett += float(relative_norm(ffn.dropped, ffn.kept + ffn.dropped).sum())

    def summary(self) -> LayerFiring:
        active = torch.cat(self._active)
        tokens = len(active)
        rates = (self._fired.double() / tokens).sort(descending=True).values
        return LayerFiring(
            dead=_fraction(self._fired == 0),
            hot=_fraction(rates >= HOT),
            active_mean=float(active.mean()),
            active_std=float(active.std(correction=0)),
            active_deciles=deciles(active),
            rates=tuple(float(group.mean()) for group in rates.tensor_split(min(BINS, len(rates)))),
            cett=self._cett / tokens,
        )


def relative_norm(part: Tensor, whole: Tensor) -> Tensor:
    """norm(part) / norm(whole) of each row, fp64 [T]; 0 where both are 0."""
    top, bottom = part.double().norm(dim=1), whole.double().norm(dim=1)
    return torch.where(top == 0, 0.0, top / bottom)


def deciles(values: Tensor) -> tuple[float, ...]:
    """Minimum, nine deciles and maximum of a vector; each is one of its values."""
    ordered = values.double().sort().values
    return tuple(float(ordered[round(level * (len(ordered) - 1))]) for level in DECILES)


def _fraction(mask: Tensor) -> float:
    return float(mask.double().mean())
