from __future__ import annotations

import pytest
import torch

from sparseinfer.predictors.metrics import QualityCounts


def test_by_hand():
    active = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]]).bool()
    candidates = torch.tensor([[1, 0, 1, 0], [1, 0, 0, 0]]).bool()
    h = torch.tensor([[3.0, 4, 0, 0], [5, 0, 0, 0]])
    down = torch.eye(4)
    counts = QualityCounts()
    for row in range(2):
        part = slice(row, row + 1)
        counts.add(active[part], candidates[part], h[part], down)
    found = counts.quality()
    assert found.tokens == 2
    assert found.recall == pytest.approx(2 / 3)
    assert found.precision == pytest.approx(2 / 3)
    assert found.true_sparsity == pytest.approx(5 / 8)
    assert found.predicted_sparsity == pytest.approx(5 / 8)
    assert found.output_error == pytest.approx((4 / 5 + 0) / 2)


def test_nothing_fires_and_nothing_is_let_through():
    counts = QualityCounts()
    nothing = torch.zeros(3, 4)
    counts.add(nothing.bool(), nothing.bool(), nothing, torch.ones(2, 4))
    found = counts.quality()
    assert (found.recall, found.precision, found.output_error) == (1, 1, 0)
    with pytest.raises(ValueError, match="no tokens"):
        QualityCounts().quality()
