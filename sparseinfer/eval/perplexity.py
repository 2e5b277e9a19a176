"""Negative log-likelihood of text under a model, and its distance from another model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat

import torch

from sparseinfer.checkpoint.layout import Progress
from sparseinfer.engine import Model
from sparseinfer.engine.model import Phase
from sparseinfer.errors import NumericalError
from sparseinfer.eval.windows import Window

_ROWS_AT_ONCE = 128


@dataclass
class Totals:
    """Sums over scored tokens, in nats."""

    tokens: int = 0
    nll: float = 0.0
    dense_nll: float = 0.0
    kl: float = 0.0
    """KL(dense || model)."""
    top1_agreements: int = 0


def measure(
    model: Model,
    dense: Model | None,
    windows: Sequence[Window],
    *,
    by: Phase,
    progress: Progress,
) -> Totals:
    """Runs both models over all windows.

    Args:
        dense: the model to compare with, of the same vocabulary; None leaves the comparison at 0.
        by: `prefill` or `decode`, see `Model.logits`.

    Raises:
        NumericalError: a model that computes NaN.
    """
    totals = Totals()
    for done, window in enumerate(windows, start=1):
        _score(totals, model, dense, window, by)
        for name, nll in (("model", totals.nll), ("dense parent", totals.dense_nll)):
            if not math.isfinite(nll):
                raise NumericalError(f"the {name} computes NaN logits: its weights are broken")
        progress("scoring", done, len(windows))
    return totals


def _score(totals: Totals, model: Model, dense: Model | None, window: Window, by: Phase) -> None:
    """Adds one window, a chunk of logits at a time."""
    ids, targets = window.ids[:-1], torch.tensor(window.ids[1:])
    first_scored = len(ids) - window.scored
    position = 0
    chunks = model.logit_chunks(ids, by=by)
    dense_chunks = repeat(None) if dense is None else dense.logit_chunks(ids, by=by)
    for logits, dense_logits in zip(chunks, dense_chunks):  # noqa: B905 - repeat() has no end
        end = position + len(logits)
        for start in range(max(position, first_scored), end, _ROWS_AT_ONCE):
            rows = slice(start - position, min(start + _ROWS_AT_ONCE, end) - position)
            _add(
                totals,
                targets[start : start + _ROWS_AT_ONCE][: rows.stop - rows.start],
                logits[rows],
                None if dense_logits is None else dense_logits[rows],
            )
        position = end


def _add(
    totals: Totals, targets: torch.Tensor, logits: torch.Tensor, dense: torch.Tensor | None
) -> None:
    log_p = logits.double().log_softmax(-1)
    totals.tokens += len(targets)
    totals.nll -= float(log_p.gather(1, targets[:, None]).sum())
    if dense is not None:
        log_q = dense.double().log_softmax(-1)
        totals.dense_nll -= float(log_q.gather(1, targets[:, None]).sum())
        totals.kl += float((log_q.exp() * (log_q - log_p)).sum())
        totals.top1_agreements += int((log_p.argmax(-1) == log_q.argmax(-1)).sum())
