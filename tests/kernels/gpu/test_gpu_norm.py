"""RMSNorm in Triton against plain torch."""

from __future__ import annotations

import pytest
import torch
from gpu_cases import DEVICE, normal

from sparseinfer.kernels.norm.gpu import GpuNorm
from sparseinfer.kernels.norm.reference import rms_norm

EPS = 1e-5


def near(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found.cpu(), wanted, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 33), (16, 576), (2, 8200)])
def test_values(rows, columns, relu):
    x, weight = normal(rows, columns), normal(columns, seed=1)
    given = x.clone().to(DEVICE)
    found = GpuNorm(weight.to(DEVICE), EPS, relu=relu)(given)
    near(found, rms_norm(x, weight, EPS, relu=relu))
    assert torch.equal(given.cpu(), x)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("rows", "columns"), [(1, 40), (5, 100)])
def test_a_sum_is_kept_and_normed(rows, columns, relu):
    x, added, weight = (
        normal(rows, columns),
        normal(rows, columns, seed=2),
        normal(columns, seed=1),
    )
    hidden, more = x.clone().to(DEVICE), added.clone().to(DEVICE)
    found = GpuNorm(weight.to(DEVICE), EPS, relu=relu)(hidden, more)
    assert torch.equal(hidden.cpu(), x + added)
    assert torch.equal(more.cpu(), added)
    near(found, rms_norm(x + added, weight, EPS, relu=relu))


def test_a_row_does_not_see_the_batch():
    op = GpuNorm(normal(70, seed=1).to(DEVICE), EPS)
    x = normal(16, 70).to(DEVICE)
    everything = op(x)
    for rows in (1, 2, 5):
        assert torch.equal(op(x[:rows]), everything[:rows])
    assert op(x[:0]).shape == (0, 70)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of numpy, in the interpreter
@pytest.mark.parametrize("relu", [False, True])
def test_bad_values_show_in_their_row(relu):
    x = normal(3, 40)
    x[1, 7] = torch.nan
    found = GpuNorm(torch.ones(40, device=DEVICE), EPS, relu=relu)(x.to(DEVICE))
    assert torch.isnan(found[1]).all()
    assert torch.isfinite(found[[0, 2]]).all()


@pytest.mark.parametrize(
    ("x", "added", "message"),
    [
        (torch.ones(4), None, "x must be"),
        (torch.ones(1, 5), None, "x must be"),
        (torch.ones(1, 4).half(), None, "float32"),
        (torch.ones(2, 8)[:, ::2], None, "contiguous"),
        (torch.ones(2, 4), torch.ones(1, 4), "added must be"),
    ],
)
def test_wrong_input(x, added, message):
    op = GpuNorm(torch.ones(4, device=DEVICE), EPS)
    with pytest.raises(ValueError, match=message):
        op(x.to(DEVICE), None if added is None else added.to(DEVICE))


def test_wrong_weights():
    with pytest.raises(ValueError, match="float32"):
        GpuNorm(torch.ones(4, device=DEVICE).half(), EPS)
    with pytest.raises(ValueError, match="CUDA device, not on meta"):
        GpuNorm(torch.ones(4, device="meta"), EPS)
