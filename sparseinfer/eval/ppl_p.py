"""PPL-p% sparsity: how many neurons a model can do without before its perplexity rises by p%.

The metric of Sparsing Law (2411.02335). A neuron's output is h_i W_down[:, i]; per token those
below a threshold of the layer are left out. CETT of a layer is the norm of what is left out over
the norm of the whole output, mean over tokens. One CETT for all layers gives each its threshold,
and it is raised until the perplexity is (1 + p) times that of the model with all neurons. The mask
needs h, so it skips rows of `down` alone; it measures models, it is no way to run them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.checkpoint.layout import Progress, no_progress
from sparseinfer.config import DTypeName, ModelConfig
from sparseinfer.errors import ConfigError
from sparseinfer.eval.firing import relative_norm
from sparseinfer.eval.perplexity import Scorer, measure, perplexity, sum_of
from sparseinfer.eval.windows import Window
from sparseinfer.layerwise import ANY_ACTIVATION, FfnPass, LayerwiseModel, Rules, masked

CURVE_TOKENS = 2048
"""Tokens that thresholds are found on."""
_POINTS = 24
_STEPS = 12
_CLOSE = 0.05
"""The search ends within this fraction of p below the limit."""


class Maskable(Scorer, Protocol):
    """A model whose masks can be changed."""

    @property
    def config(self) -> ModelConfig: ...

    def set_thresholds(self, thresholds: Sequence[Tensor]) -> None: ...

    def set_top_k(self, k: int | None) -> None: ...

    def set_sketch(self, bits: int | None) -> None: ...

    def set_input_thresholds(self, thresholds: Mapping[str, Sequence[Tensor]]) -> None: ...

    def reset_sparsity(self) -> None: ...

    def sparsity(self, phase: Any = None) -> Any: ...


@dataclass(frozen=True)
class SearchStep:
    """One CETT that was tried."""

    cett: float
    perplexity_ratio: float
    neuron_sparsity: float


@dataclass(frozen=True)
class PplP:
    """The sparsest state found whose perplexity rises by at most p."""

    p: float
    perplexity: float
    """Without any mask; the activation's own zeros are no mask."""
    perplexity_ratio: float
    cett: float
    neuron_sparsity: float
    """Mean of the layers; neurons that the activation makes 0 count."""
    layer_sparsity: tuple[float, ...]
    curve_tokens: int
    """Tokens, from the beginning of the same text, that thresholds were found on."""
    trace: tuple[SearchStep, ...]


@dataclass(frozen=True)
class LayerCurve:
    """Thresholds on |h_i| norm(W_down[:, i]) of one layer, and the CETT each gives."""

    thresholds: np.ndarray
    """fp64 [K], ascending from 0."""
    cett: np.ndarray
    """fp64 [K], ascending from 0 to 1."""
    norms: Tensor
    """fp32 [I]: norm(W_down[:, i])."""

    def on_inputs(self, cett: float) -> Tensor:
        """Thresholds [I] fp32 on |h_i| for a CETT, linear between the points of the curve; at 0
        nothing is left out."""
        theta = float(np.interp(cett, self.cett, self.thresholds)) if cett > 0 else 0.0
        return torch.where(self.norms > 0, theta / self.norms, torch.inf)


def check_p(p: float | None) -> None:
    """Raises ConfigError unless p is None or in (0, 1]."""
    if p is not None and not 0 < p <= 1:
        raise ConfigError(
            f"a perplexity rise of {100 * p:g}% is outside (0%, 100%]; write for example --ppl-p 1%"
        )


def measure_curves(
    checkpoint: Checkpoint,
    rules: Rules,
    windows: Tensor,
    *,
    dtype: DTypeName,
    progress: Progress = no_progress,
) -> list[LayerCurve]:
    """Runs windows of token ids [W, T] through the model without masks; one curve per layer.

    Args:
        rules: only the activation of these counts.
        dtype: weights are rounded to this type first.
    """
    model = LayerwiseModel(checkpoint, hidden_act=ANY_ACTIVATION, dtype=dtype)
    plain = rules.activation_alone()
    curves = []
    done, total = 0, checkpoint.config.num_layers * len(windows)
    for index, passes in model.run(windows):
        inputs = _DownInputs()
        with masked(model.layer, index, plain, inputs.add):
            for _ in passes:
                done += 1
                progress("measuring CETT", done, total)
        down = model.layer.get_parameter("mlp.down_proj.weight").detach()
        curves.append(layer_curve(torch.cat(inputs.rows), down))
    return curves


class _DownInputs:
    """Collects h of one layer, pass by pass."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []

    def add(self, ffn: FfnPass) -> None:
        self.rows.append(ffn.h)


def layer_curve(h: Tensor, down: Tensor) -> LayerCurve:
    """The curve of one layer.

    Args:
        h: fp32 [T, I], inputs of down.
        down: fp32 [H, I].
    """
    norms = down.norm(dim=0)
    scores = h.abs() * norms
    positive = scores[scores > 0].numpy()
    levels = np.linspace(0, 1, _POINTS + 1)[:-1]
    ranks = np.unique((levels * len(positive)).astype(np.int64)) if len(positive) else []
    if len(positive):
        positive.partition(ranks)
    # One beyond the largest score leaves everything out.
    last = float(np.nextafter(np.float32(scores.max()), np.float32(np.inf)))
    thresholds = [0.0, *(float(positive[rank]) for rank in ranks), last]
    whole = h @ down.T
    cett = []
    for threshold in thresholds:
        dropped = torch.where(scores < threshold, h, 0.0) @ down.T
        cett.append(float(relative_norm(dropped, whole).mean()))
    return LayerCurve(np.array(thresholds), np.maximum.accumulate(cett), norms)


def ppl_p_sparsity(
    model: Maskable,
    curves: Sequence[LayerCurve],
    windows: Sequence[Window],
    p: float,
    *,
    curve_tokens: int,
    progress: Progress = no_progress,
) -> PplP:
    """Bisects the CETT of all layers. Leaves the model with the last masks that were tried.

    The model's own thresholds are lifted first: what is measured is its activation.

    Args:
        p: in (0, 1]: 0.01 lets perplexity rise by 1%.
    """
    check_p(p)
    neurons = model.config.intermediate_size
    model.set_thresholds([torch.zeros(neurons)] * model.config.num_layers)
    model.set_top_k(None)
    model.set_sketch(None)

    def run(cett: float, step: int) -> tuple[float, tuple[float, ...]]:
        """Mean nll per token, and the neuron sparsity of each layer."""
        model.set_input_thresholds({"down": [curve.on_inputs(cett) for curve in curves]})
        model.reset_sparsity()
        totals = sum_of(
            measure(
                model,
                None,
                windows,
                by="prefill",
                progress=lambda _what, done, _total: progress(
                    "PPL-p search", step * len(windows) + done, (_STEPS + 1) * len(windows)
                ),
            )
        )
        counts = model.sparsity("prefill")
        used = counts.inputs["down"]
        return totals.nll / totals.tokens, tuple(1 - n / (counts.tokens * neurons) for n in used)

    base, sparsity = run(0.0, 0)
    best = (SearchStep(0.0, 1.0, _mean(sparsity)), sparsity)
    trace = [best[0]]
    low, high = 0.0, 1.0
    for number in range(1, _STEPS + 1):
        cett = (low + high) / 2
        nll, sparsity = run(cett, number)
        step = SearchStep(cett, perplexity(nll - base, 1), _mean(sparsity))
        trace.append(step)
        if step.perplexity_ratio > 1 + p:
            high = cett
            continue
        low, best = cett, (step, sparsity)
        if step.perplexity_ratio >= 1 + (1 - _CLOSE) * p:
            break
    reached, layers = best
    return PplP(
        p=p,
        perplexity=perplexity(base, 1),
        perplexity_ratio=reached.perplexity_ratio,
        cett=reached.cett,
        neuron_sparsity=reached.neuron_sparsity,
        layer_sparsity=layers,
        curve_tokens=curve_tokens,
        trace=tuple(trace),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
