"""Student's t against its tables, and intervals of weighted means."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sparseinfer.eval.comparison import compare
from sparseinfer.eval.interval import t_quantile, weighted_mean_interval
from sparseinfer.eval.perplexity import Totals


@pytest.mark.parametrize(
    ("degrees", "tabled"),
    [(1, 12.7062), (2, 4.30265), (3, 3.18245), (7, 2.36462), (30, 2.04227), (1000, 1.96234)],
)
def test_quantiles_are_those_of_the_tables(degrees, tabled):
    assert t_quantile(0.95, degrees) == pytest.approx(tabled, rel=1e-5)
    assert t_quantile(0.5, 1) == pytest.approx(1, rel=1e-5)


def test_equal_weights_give_the_usual_standard_error():
    found = weighted_mean_interval([1, 2, 3, 4], [5, 5, 5, 5])
    assert found.mean == 2.5
    assert found.stderr == pytest.approx(math.sqrt(5 / 3) / 2)
    assert found.low == pytest.approx(2.5 - 3.18245 * found.stderr, rel=1e-5)
    assert found.high == pytest.approx(2.5 + 3.18245 * found.stderr, rel=1e-5)


def test_weights_by_hand():
    found = weighted_mean_interval([0, 1], [1, 3])
    assert found.mean == 0.75
    # sqrt(2 / 1 * ((1 * 0.75)^2 + (3 * 0.25)^2)) / 4
    assert found.stderr == pytest.approx(0.375)


def test_one_window_says_nothing_of_others():
    with pytest.raises(ValueError, match="two windows"):
        weighted_mean_interval([1.0], [1.0])


def test_intervals_hold_the_truth_as_often_as_they_say():
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(1000):
        found = weighted_mean_interval(random.normal(0.3, 1, size=6), np.ones(6))
        hits += found.low <= 0.3 <= found.high
    assert 0.93 < hits / 1000 < 0.97


def _window(tokens, nll, dense_nll):
    return Totals(tokens=tokens, nll=nll, dense_nll=dense_nll, kl=0.5 * tokens, top1_agreements=1)


def test_a_comparison_pairs_the_windows():
    # The windows differ a lot, the models always by the same: the interval has no width.
    found = compare("parent", "fp32", [_window(10, 20, 19), _window(10, 90, 89)])
    assert found.perplexity_ratio == pytest.approx(math.exp(0.1))
    assert found.interval.low == pytest.approx(math.exp(0.1))
    assert found.interval.high == pytest.approx(math.exp(0.1))
    assert found.interval.stderr == pytest.approx(0, abs=1e-12)
    assert found.interval.windows == 2
    assert (found.parent, found.weights, found.no_interval_because) == ("parent", "fp32", "")
    assert found.kl == 0.5
    assert found.top1_agreement == 0.1


def test_a_comparison_weights_windows_by_their_tokens():
    found = compare("p", "fp32", [_window(10, 10, 10), _window(30, 60, 30)])
    assert found.perplexity_ratio == pytest.approx(math.exp(0.75))
    assert found.interval.stderr == pytest.approx(0.375)
    reach = 12.7062 * 0.375
    assert math.log(found.interval.low) == pytest.approx(0.75 - reach, rel=1e-5)
    assert math.log(found.interval.high) == pytest.approx(0.75 + reach, rel=1e-5)


def test_one_window_has_no_interval_and_says_why():
    found = compare("p", "fp32", [_window(10, 12, 10)])
    assert found.interval is None
    assert "one window" in found.no_interval_because
