"""Passes through single layers of the evaluated model, on the beginning of the evaluated text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.checkpoint.layout import Progress
from sparseinfer.config import DTypeName
from sparseinfer.engine import Model
from sparseinfer.eval.firing import Firing, deciles, measure_firing
from sparseinfer.eval.ppl_p import CURVE_TOKENS, PplP, measure_curves, ppl_p_sparsity
from sparseinfer.eval.rules import rules_of
from sparseinfer.eval.windows import Recipe, Window, stack_windows
from sparseinfer.packed import Packed


@dataclass(frozen=True)
class Sample:
    """What the passes run on.

    Attributes:
        stream: token ids of the scored text.
        dtype: to which weights are rounded.
    """

    stream: list[int]
    recipe: Recipe
    dtype: DTypeName

    def windows(self, tokens: int) -> torch.Tensor:
        """About so many token ids [W, T] int64 from the beginning of the text."""
        prefix, context = self.recipe.special_prefix, self.recipe.context
        return stack_windows(self.stream, prefix, tokens=tokens, context=context)


def watch_neurons(
    source: Checkpoint | Packed,
    running: Model,
    sample: Sample,
    tokens: int,
    progress: Progress,
) -> tuple[Firing | None, str]:
    """Which neurons fire on so many tokens, or None and why that is left out."""
    if isinstance(source, Packed):
        return (
            None,
            "neurons are watched in a checkpoint: evaluate the one that this was packed from",
        )
    if tokens == 0:
        return None, "not asked for"
    windows = sample.windows(tokens)
    rules = rules_of(running)
    return measure_firing(source, rules, windows, dtype=sample.dtype, progress=progress), ""


def search_ppl_p(
    source: Checkpoint,
    running: Model,
    sample: Sample,
    windows: Sequence[Window],
    p: float,
    progress: Progress,
) -> PplP:
    """PPL-p% sparsity: thresholds from the sample, perplexity on all windows. Leaves the model with
    other masks than it had."""
    tokens = sample.windows(CURVE_TOKENS)
    rules = rules_of(running)
    curves = measure_curves(source, rules, tokens, dtype=sample.dtype, progress=progress)
    return ppl_p_sparsity(
        running, curves, windows, p, curve_tokens=tokens.numel(), progress=progress
    )


def rounding(source: Checkpoint | Packed, running: Model) -> DTypeName:
    """To which type single layers are rounded: that of the engine's matrices where it is one of a
    checkpoint, else the type as stored."""
    if running.weight_type in ("fp32", "bf16"):
        return running.weight_type
    return source.dtype if isinstance(source, Checkpoint) else "bf16"


def threshold_deciles(model: Model) -> dict[str, tuple[tuple[float, ...], ...]]:
    """`neurons` and the projections that have thresholds on their inputs -> each layer's minimum,
    nine deciles and maximum."""
    own = model.record is not None and model.record.has_thresholds
    found = {"neurons": model.thresholds} if own else {}
    found |= model.input_thresholds
    return {name: tuple(map(deciles, layers)) for name, layers in found.items()}
