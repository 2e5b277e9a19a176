"""A model against its dense parent, window by window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparseinfer.eval.interval import weighted_mean_interval
from sparseinfer.eval.perplexity import Totals, perplexity, sum_of


@dataclass(frozen=True)
class RatioInterval:
    """How sure the ratio of perplexities is.

    Both models score the same windows, so what varies is the difference of their mean negative
    log-likelihood from window to window; windows count by their tokens, and Student's t
    distribution with windows - 1 degrees of freedom gives the interval.
    """

    low: float
    high: float
    """95% interval of the perplexity ratio."""
    stderr: float
    """Standard error of the ratio's logarithm, in nats per token."""
    windows: int


@dataclass(frozen=True)
class Comparison:
    """Against the dense parent on the same tokens."""

    parent: str
    weights: str
    """Formats that the parent was held in."""
    perplexity: float
    perplexity_ratio: float
    """Model over parent; 1.05 is 5% worse."""
    interval: RatioInterval | None
    no_interval_because: str
    """Why `interval` is None; empty where it is not."""
    kl: float
    """Mean KL(parent || model) per token, in nats."""
    top1_agreement: float
    """Fraction of tokens where both models' most likely token is the same."""


def compare(parent: str, weights: str, windows: Sequence[Totals]) -> Comparison:
    """Sums up what `measure` found with a dense model beside."""
    totals = sum_of(windows)
    interval = _interval(windows)
    return Comparison(
        parent=parent,
        weights=weights,
        perplexity=perplexity(totals.dense_nll, totals.tokens),
        perplexity_ratio=perplexity(totals.nll - totals.dense_nll, totals.tokens),
        interval=interval,
        no_interval_because=""
        if interval
        else "the text fills one window: nothing says how much windows vary",
        kl=totals.kl / totals.tokens,
        top1_agreement=totals.top1_agreements / totals.tokens,
    )


def _interval(windows: Sequence[Totals]) -> RatioInterval | None:
    if len(windows) < 2:
        return None
    found = weighted_mean_interval(
        [(one.nll - one.dense_nll) / one.tokens for one in windows],
        [one.tokens for one in windows],
    )
    low, high = (perplexity(end, 1) for end in (found.low, found.high))
    return RatioInterval(low, high, found.stderr, len(windows))
