"""Activations that are trained: their values, and their gradients against finite differences."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import relu, silu

from sparseinfer.finetune.activations import (
    SoftThreshold,
    Stochastic,
    StraightThroughTopK,
    phases,
    relu2,
)
from sparseinfer.finetune.settings import ObjectiveSettings, check_objective

FAR_FROM_KINKS = torch.tensor(
    [[-3.0, -1.2, -0.4, 0.35, 0.8, 1.7, 2.9], [-2.1, 0.45, -0.9, 1.3, 0.75, -0.2, 3.5]],
    dtype=torch.float64,
)


class Fixed:
    """Stochastic with the same draws every time, as finite differences need."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(3)
        return Stochastic(0.5)(x)


@pytest.mark.parametrize(
    "activation",
    [relu, relu2, silu, Fixed(), SoftThreshold(0.2), SoftThreshold(0.2, 2.0)],
    ids=["relu", "relu2", "silu", "stochastic", "soft", "clipped"],
)
def test_gradients_are_those_of_finite_differences(activation):
    x = FAR_FROM_KINKS.clone().requires_grad_()
    assert torch.autograd.gradcheck(activation, (x,), eps=1e-6, atol=1e-7)


def test_relu2_squares_what_is_above_0():
    x = torch.tensor([-2.0, 0.0, 0.5, 3.0])
    assert relu2(x).tolist() == [0.0, 0.0, 0.25, 9.0]


def test_stochastic_is_relu_from_0_on_and_silu_below_as_often_as_asked():
    torch.manual_seed(0)
    x = torch.cat((torch.full((20_000,), -1.0), torch.full((100,), 2.0)))
    y = Stochastic(0.7)(x)
    assert (y[20_000:] == 2.0).all()
    below = y[:20_000]
    drawn = below == silu(torch.tensor(-1.0))
    assert ((below == 0) | drawn).all()
    assert drawn.float().mean().item() == pytest.approx(0.7, abs=0.02)


@pytest.mark.parametrize(("p", "below"), [(0.0, relu), (1.0, silu)])
def test_stochastic_at_its_ends(p, below):
    x = torch.linspace(-3, -0.01, 50)
    assert torch.equal(Stochastic(p)(x), below(x))


def test_soft_threshold_takes_tau_off_and_is_clipped():
    x = torch.tensor([-1.0, 0.2, 0.5, 2.0, 9.0])
    assert SoftThreshold(0.5)(x).tolist() == [0.0, 0.0, 0.0, 1.5, 8.5]
    assert SoftThreshold(0.5, 2.0)(x).tolist() == [0.0, 0.0, 0.0, 1.5, 2.0]


def test_top_k_keeps_the_largest_and_lets_gradients_of_relu_through():
    x = torch.tensor([[3.0, -1.0, 1.0, 2.0], [0.5, 4.0, -2.0, -3.0]], requires_grad=True)
    y = StraightThroughTopK(2)(x)
    assert y.tolist() == [[3.0, 0.0, 0.0, 2.0], [0.5, 4.0, 0.0, 0.0]]
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[1.0, 0.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0]]


@pytest.mark.parametrize("k", [4, 9])
def test_top_k_of_all_is_relu(k):
    x = torch.randn(3, 4)
    assert torch.equal(StraightThroughTopK(k)(x), relu(x))


def test_training_aids_end_before_the_run_does():
    settings = ObjectiveSettings(
        act="relu", objective="clipped", soft_threshold=0.3, clip=1.0, relu_fraction=0.25
    )
    found = phases(check_objective(settings, neurons=8))
    x = torch.tensor([5.0])
    assert found.at(0.74)(x).item() == 1.0
    assert found.at(0.75)(x).item() == pytest.approx(4.7)


def test_stochastic_ends_as_relu():
    found = phases(check_objective(ObjectiveSettings(act="relu", objective="stochastic"), 8))
    x = torch.full((1000,), -1.0)
    torch.manual_seed(0)
    assert (found.at(0.94)(x) != 0).any()
    assert (found.at(0.95)(x) == 0).all()
