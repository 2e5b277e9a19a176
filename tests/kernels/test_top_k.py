"""The k values of largest magnitude: by hand, and the native choice against the plain one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparseinfer.kernels.isa import native
from sparseinfer.kernels.threads import CpuPool
from sparseinfer.kernels.top_k import among_largest

NAN = torch.nan


def by_reference(a: Tensor, k: int) -> Tensor:
    return torch.where(among_largest(a, k), a, 0.0)


def by_native(a: Tensor, k: int, threads: int = 2) -> Tensor:
    kept = a.clone()
    native().keep_largest(kept.data_ptr(), *kept.shape, k, CpuPool(threads).native)
    return kept


IMPLEMENTATIONS = pytest.mark.parametrize("largest", [by_reference, by_native])


@IMPLEMENTATIONS
@pytest.mark.parametrize(
    ("values", "k", "expected"),
    [
        ([1, -3, 2, 0.5], 2, [0, -3, 2, 0]),
        ([1, -3, 2, 0.5], 4, [1, -3, 2, 0.5]),
        ([1, -3, 2, 0.5], 9, [1, -3, 2, 0.5]),
        ([2, -2, 2, -2], 3, [2, -2, 2, 0]),
        ([1, 2, -2, 2, 3], 3, [0, 2, -2, 0, 3]),
        ([0, 0, 5, 0], 2, [0, 0, 5, 0]),
        ([1e-42, -2e-42, 1e-44], 1, [0, -2e-42, 0]),
        ([3, NAN, 1], 1, [0, NAN, 0]),
        ([torch.inf, 3e38, -torch.inf], 2, [torch.inf, 0, -torch.inf]),
    ],
)
def test_by_hand(largest, values, k, expected):
    found = largest(torch.tensor([values], dtype=torch.float32), k)
    torch.testing.assert_close(
        found, torch.tensor([expected], dtype=torch.float32), rtol=0, atol=0, equal_nan=True
    )


@pytest.mark.parametrize("seed", range(40))
def test_both_choose_the_same(seed):
    random = torch.Generator().manual_seed(seed)
    rows, columns = 1 + seed % 19, int(torch.randint(1, 700, (), generator=random))
    a = torch.randn(rows, columns, generator=random)
    if seed % 2:  # many ties and zeros
        a = (2 * a).round() / 2
    k = int(torch.randint(1, columns + 2, (), generator=random))
    expected = by_reference(a, k)
    assert torch.equal(by_native(a, k, threads=1 + seed % 3), expected)
    kept = (expected != 0).sum(1)
    assert torch.equal(kept, (a != 0).sum(1).clamp_max(k))
