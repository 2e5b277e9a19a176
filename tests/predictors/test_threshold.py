from __future__ import annotations

import math

import pytest
import torch

from sparseinfer.predictors.threshold import logit_threshold, most_negatives


@pytest.mark.parametrize("recall", [0.05, 0.5, 0.9, 0.98, 0.999])
def test_the_largest_threshold_that_reaches_the_recall(recall):
    random = torch.Generator().manual_seed(1)
    logits = torch.randn(50, 40, generator=random)
    active = torch.rand(50, 40, generator=random) < 0.2
    threshold = logit_threshold(logits, active, recall)
    positives = logits[active]
    assert float((positives >= threshold).double().mean()) >= recall
    above = positives[positives > threshold]
    assert len(above) / len(positives) < recall


def test_certainty_lets_everything_through_and_a_silent_layer_nothing():
    logits = torch.randn(5, 6)
    assert logit_threshold(logits, torch.ones(5, 6).bool(), 1.0) == -math.inf
    assert logit_threshold(logits, torch.zeros(5, 6).bool(), 0.9) == math.inf
    negatives = torch.randint(0, 9, (5, 6))
    assert most_negatives(negatives, torch.ones(5, 6).bool(), 1.0, 8) == 8
    assert most_negatives(negatives, torch.zeros(5, 6).bool(), 0.9, 8) == -1


def test_the_fewest_negatives_that_reach_the_recall():
    negatives = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 8, 8]])
    active = torch.tensor([[1, 1, 1, 1, 1, 1, 1, 1, 0, 0]]).bool()
    assert most_negatives(negatives, active, 0.5, 8) == 3
    assert most_negatives(negatives, active, 0.51, 8) == 4
    assert most_negatives(negatives, active, 0.99, 8) == 7
