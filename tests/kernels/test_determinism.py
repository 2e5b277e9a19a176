"""The bits of the FFN and of both linear ops depend on the input alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from ffn_oracle import case
from matrices import matrix
from torch import Tensor

from sparseinfer.kernels.gated_ffn.cpu import CpuGatedFfn
from sparseinfer.kernels.isa import isa_available
from sparseinfer.kernels.linear.cpu import CpuLinear
from sparseinfer.kernels.sparse_input_linear.cpu import CpuSparseInputLinear
from sparseinfer.kernels.threads import CpuPool

Outputs = tuple[Tensor | None, ...]
THREADS = (1, 2, 3, 5)


def given(outputs: Outputs) -> list[Tensor]:
    return [one for one in outputs if one is not None]


def same(found: Outputs, expected: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(given(found), expected, strict=True))


def check(make: Callable[[CpuPool], Callable[[Tensor], Outputs]], x: Tensor) -> None:
    """Every number of threads, run and batch gives each row of x what it gets alone."""
    alone = [given(make(CpuPool(1))(row[None])) for row in x]
    expected = [torch.cat(parts) for parts in zip(*alone, strict=True)]
    assert not torch.isnan(expected[0]).any()
    for threads in THREADS:
        op = make(CpuPool(threads))
        for _ in range(2):
            assert same(op(x), expected), threads
        for rows in range(1, 17) if threads == 1 else (1, 3, 16):
            assert same(op(x[:rows]), [part[:rows] for part in expected]), (threads, rows)
        assert same(op(x[7:10]), [part[7:10] for part in expected])


@pytest.mark.parametrize("density", [0.1, 1])
@pytest.mark.parametrize(("phi", "psi"), [("silu", "id"), ("relu", "relu")])
def test_ffn(isa, format, density, phi, psi):
    x, weights = case(
        201, 777, phi=phi, psi=psi, format=format, density=density, rows=21, bias=True
    )
    check(lambda pool: CpuGatedFfn(weights, pool, isa), x)


def test_ffn_with_thresholds_on_neuron_outputs(isa, format):
    x, weights = case(201, 777, format=format, density=0.5, rows=21, bias=True)
    weights = dataclasses.replace(weights, down_input=0.1 * torch.rand(777))
    counts = CpuGatedFfn(weights, CpuPool(1), isa)(x).counts.sum(0)
    assert 0 < counts[1] < counts[0], "otherwise the thresholds decide nothing"
    check(lambda pool: CpuGatedFfn(weights, pool, isa), x)


@pytest.mark.parametrize(("inputs", "outputs"), [(130, 1000), (577, 61)])
def test_linear(isa, format, inputs, outputs):
    weight, bias = matrix(outputs, inputs, format), torch.randn(outputs)
    op = CpuLinear
    check(lambda pool: lambda x: (op(weight, bias, pool, isa)(x),), torch.randn(18, inputs))


@pytest.mark.parametrize(("inputs", "outputs"), [(777, 201), (60, 577)])
def test_sparse_input_linear(isa, format, inputs, outputs):
    weight, bias = matrix(inputs, outputs, format), torch.randn(outputs)
    threshold = torch.rand(inputs)
    check(
        lambda pool: CpuSparseInputLinear(weight, threshold, bias, pool, isa),
        torch.randn(18, inputs),
    )


@pytest.mark.parametrize("thresholds", [(0.0, torch.inf), (torch.inf, 0.0), (torch.inf, torch.inf)])
def test_a_neuron_adds_the_same_bits_whatever_else_is_kept(isa, pool, format, thresholds):
    """Switching off neurons that add nothing (h = 0) changes no bit: a masked one adds 0."""
    x, weights = case(96, 640, phi="relu", psi="relu", format=format, density=1, rows=3)
    op = CpuGatedFfn(weights, pool, isa)
    expected = op(x)
    unused = torch.ones(640, dtype=torch.bool)
    for neuron in range(0, 640, 20):
        weights.threshold.zero_()
        weights.threshold[neuron] = torch.inf
        if not torch.equal(op(x).y, expected.y):
            unused[neuron] = False
    assert 0 < int((~unused).sum()) < 640 // 20
    probed = torch.arange(640) % 20 == 0
    weights.threshold.zero_()
    weights.threshold[unused & probed & (torch.arange(640) % 40 == 0)] = thresholds[0]
    weights.threshold[unused & probed & (torch.arange(640) % 40 == 20)] = thresholds[1]
    assert torch.equal(op(x).y, expected.y)


def test_variants_agree_within_their_tolerance(format):
    x, weights = case(576, 300, format=format, density=1)
    first, *others = (CpuGatedFfn(weights, CpuPool(1), isa)(x).y for isa in isa_available())
    for y in others:
        assert torch.allclose(y, first, rtol=1e-4, atol=1e-5)
