"""The learning rate against values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from sparseinfer.errors import ConfigError
from sparseinfer.finetune.rate import warmup_cosine


def test_warm_up_is_linear_and_the_cosine_ends_at_the_floor():
    factor = warmup_cosine(steps=104, warmup=4, floor=0.1)
    assert [factor(done) for done in range(4)] == [0.25, 0.5, 0.75, 1.0]
    # After 25, 50, 75 and 100 of the 100 updates of the cosine:
    expected = [0.1 + 0.45 * (1 + math.sqrt(0.5)), 0.55, 0.1 + 0.45 * (1 - math.sqrt(0.5)), 0.1]
    assert [factor(done) for done in (28, 53, 78, 103)] == pytest.approx(expected)
    assert factor(1000) == pytest.approx(0.1)


def test_it_never_rises_after_warm_up_nor_is_0_before_the_end():
    factor = warmup_cosine(steps=50, warmup=5, floor=0.0)
    values = [factor(done) for done in range(50)]
    assert values[4:] == sorted(values[4:], reverse=True)
    assert min(values[:-1]) > 0


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (5, 5), (5, 0)])
def test_short_runs(steps, warmup):
    factor = warmup_cosine(steps=steps, warmup=warmup, floor=0.5)
    assert all(0.5 <= factor(done) <= 1 or done < warmup for done in range(steps))


def test_torch_takes_it():
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=2.0)
    rate = warmup_cosine(steps=4, warmup=2, floor=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    seen = []
    for _ in range(4):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert seen == pytest.approx([1.0, 2.0, 1.0, 0.0])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": 0}, "0 steps"),
        ({"warmup": 11}, "warm-up of 11 steps"),
        ({"warmup": -1}, "warm-up of -1 steps"),
        ({"floor": 1.5}, "1.5 times the peak"),
        ({"floor": math.nan}, "nan times the peak"),
    ],
)
def test_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        warmup_cosine(**({"steps": 10, "warmup": 2, "floor": 0.1} | changes))
