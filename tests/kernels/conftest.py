"""Every kernel test runs on the torch reference and on each variant this machine can run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sparseinfer.kernels.gated_ffn import FfnOutput, FfnWeights
from sparseinfer.kernels.gated_ffn.cpu import CpuGatedFfn
from sparseinfer.kernels.gated_ffn.reference import gated_ffn
from sparseinfer.kernels.isa import isa_available
from sparseinfer.kernels.linear.cpu import CpuLinear
from sparseinfer.kernels.linear.reference import linear
from sparseinfer.kernels.threads import CpuPool

Ffn = Callable[[FfnWeights, Tensor], FfnOutput]
Linear = Callable[[Tensor, Tensor | None, Tensor], Tensor]


@pytest.fixture(scope="session")
def pool() -> CpuPool:
    return CpuPool(2)


@pytest.fixture(params=isa_available())
def isa(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["reference", *isa_available()])
def ffn(request: pytest.FixtureRequest, pool: CpuPool) -> Ffn:
    if request.param == "reference":
        return lambda weights, x: gated_ffn(x, weights)
    return lambda weights, x: CpuGatedFfn(weights, pool, request.param)(x)


@pytest.fixture(params=["reference", *isa_available()])
def linear_op(request: pytest.FixtureRequest, pool: CpuPool) -> Linear:
    if request.param == "reference":
        return lambda weight, bias, x: linear(x, weight, bias)
    return lambda weight, bias, x: CpuLinear(weight, bias, pool, request.param)(x)


@pytest.fixture(autouse=True)
def poisoned_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh outputs hold NaN (or -1), so a value that a kernel forgets to write shows."""
    empty = torch.empty

    def poisoned(*args, **kwargs) -> Tensor:
        tensor = empty(*args, **kwargs)
        return tensor.fill_(torch.nan if tensor.is_floating_point() else -1)

    monkeypatch.setattr(torch, "empty", poisoned)
