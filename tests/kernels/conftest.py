"""Every kernel test runs on the torch reference and on each variant this machine can run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from sparseinfer.kernels.gated_ffn.cpu import CpuGatedFfn
from sparseinfer.kernels.gated_ffn.reference import gated_ffn
from sparseinfer.kernels.isa import isa_available
from sparseinfer.kernels.linear.cpu import CpuLinear
from sparseinfer.kernels.linear.reference import linear
from sparseinfer.kernels.matrix import FORMATS, Format
from sparseinfer.kernels.sparse_input_linear.cpu import CpuSparseInputLinear
from sparseinfer.kernels.sparse_input_linear.reference import sparse_input_linear
from sparseinfer.kernels.threads import CpuPool


@dataclass(frozen=True)
class Implementation:
    """One of several that compute the same op."""

    call: Callable[..., Any]
    rounds_inputs: bool
    """Whether inputs are held in few bits against quantised weights."""

    def __call__(self, *arguments: Any) -> Any:
        return self.call(*arguments)


IMPLEMENTATIONS = ["reference", *isa_available()]


@pytest.fixture(scope="session")
def pool() -> CpuPool:
    return CpuPool(2)


@pytest.fixture(params=isa_available())
def isa(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=FORMATS)
def format(request: pytest.FixtureRequest) -> Format:
    return request.param


@pytest.fixture(params=IMPLEMENTATIONS)
def ffn(request: pytest.FixtureRequest, pool: CpuPool) -> Implementation:
    """ffn(weights, x)"""
    if request.param == "reference":
        return Implementation(lambda weights, x: gated_ffn(x, weights), False)
    return Implementation(lambda weights, x: CpuGatedFfn(weights, pool, request.param)(x), True)


@pytest.fixture(params=IMPLEMENTATIONS)
def linear_op(request: pytest.FixtureRequest, pool: CpuPool) -> Implementation:
    """linear_op(weight, bias, x)"""
    if request.param == "reference":
        return Implementation(lambda weight, bias, x: linear(x, weight, bias), False)
    return Implementation(
        lambda weight, bias, x: CpuLinear(weight, bias, pool, request.param)(x), True
    )


@pytest.fixture(params=IMPLEMENTATIONS)
def sparse_input_op(request: pytest.FixtureRequest, pool: CpuPool) -> Implementation:
    """sparse_input_op(weight, threshold, bias, x)"""
    if request.param == "reference":
        return Implementation(
            lambda weight, threshold, bias, x: sparse_input_linear(x, weight, threshold, bias),
            False,
        )
    return Implementation(
        lambda weight, threshold, bias, x: CpuSparseInputLinear(
            weight, threshold, bias, pool, request.param
        )(x),
        False,
    )


@pytest.fixture(autouse=True)
def poisoned_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh outputs hold NaN (or -1), so a value that a kernel forgets to write shows."""
    empty = torch.empty

    def poisoned(*args, **kwargs) -> Tensor:
        tensor = empty(*args, **kwargs)
        if tensor.dtype == torch.uint8:
            return tensor.fill_(255)
        return tensor.fill_(torch.nan if tensor.is_floating_point() else -1)

    monkeypatch.setattr(torch, "empty", poisoned)
