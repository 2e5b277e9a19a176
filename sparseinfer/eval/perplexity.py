"""Negative log-likelihood of text under a model, and its distance from another model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Protocol

import torch

from sparseinfer.checkpoint.layout import Progress
from sparseinfer.engine.settings import Phase
from sparseinfer.errors import NumericalError
from sparseinfer.eval.windows import Window

_ROWS_AT_ONCE = 128


class Scorer(Protocol):
    """What is needed of a model to score text."""

    def logit_chunks(self, ids: Sequence[int], *, by: Phase = "prefill") -> Iterator[torch.Tensor]:
        """Next-token logits [n, V] fp32 of all positions, some at a time."""
        ...


@dataclass
class Totals:
    """Sums over scored tokens, in nats."""

    tokens: int = 0
    nll: float = 0.0
    dense_nll: float = 0.0
    kl: float = 0.0
    """KL(dense || model)."""
    top1_agreements: int = 0

    def add(self, other: Totals) -> None:
        self.tokens += other.tokens
        self.nll += other.nll
        self.dense_nll += other.dense_nll
        self.kl += other.kl
        self.top1_agreements += other.top1_agreements


def sum_of(windows: Iterable[Totals]) -> Totals:
    """All windows together."""
    total = Totals()
    for window in windows:
        total.add(window)
    return total


def measure(
    model: Scorer,
    dense: Scorer | None,
    windows: Sequence[Window],
    *,
    by: Phase,
    progress: Progress,
    what: str = "scoring",
) -> list[Totals]:
    """Runs both models over all windows; the sums of each window.

    Args:
        dense: the model to compare with, of the same vocabulary; None leaves the comparison at 0.
        by: `prefill` or `decode`, see `Model.logits`.
        what: name of the work for `progress`.

    Raises:
        NumericalError: a model that computes NaN.
    """
    measured = []
    for done, window in enumerate(windows, start=1):
        totals = Totals()
        _score(totals, model, dense, window, by)
        for name, nll in (("model", totals.nll), ("dense parent", totals.dense_nll)):
            if not math.isfinite(nll):
                raise NumericalError(f"the {name} computes NaN logits: its weights are broken")
        measured.append(totals)
        progress(what, done, len(windows))
    return measured


def perplexity(nll: float, tokens: int) -> float:
    """exp(nll / tokens); infinite where a float cannot hold it."""
    try:
        return math.exp(nll / tokens)
    except OverflowError:
        return math.inf


def _score(totals: Totals, model: Scorer, dense: Scorer | None, window: Window, by: Phase) -> None:
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
