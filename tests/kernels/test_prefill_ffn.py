"""The gated FFN for prompts: against fp64, and its mask against the reference's."""

from __future__ import annotations

import pytest
import torch
from matrices import FORMATS, bundle, matrix, relative

from sparseinfer.kernels import gemm as module
from sparseinfer.kernels.gated_ffn import PHI, PSI, FfnWeights
from sparseinfer.kernels.gated_ffn.activations import activation, up_activation
from sparseinfer.kernels.gated_ffn.prefill import _gate, gated_ffn
from sparseinfer.kernels.gated_ffn.reference import gated_ffn as reference
from sparseinfer.kernels.gemm import MATHS, Gemm

SHAPES = [(1, 1), (17, 3), (64, 129), (129, 300), (192, 512)]
VARIANTS = [(phi, psi) for phi in PHI for psi in PSI]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def case(
    hidden: int, intermediate: int, format, phi="silu", psi="id", bias=False, threshold=0.2
) -> FfnWeights:
    gate, up, down = (matrix(intermediate, hidden, format, seed) for seed in range(3))
    up, down = bundle(up, down)
    biases = [torch.randn(n) * 0.1 if bias else None for n in (intermediate, intermediate, hidden)]
    return FfnWeights(gate, up, down, torch.rand(intermediate) * threshold, phi, psi, *biases)


@pytest.mark.parametrize(("phi", "psi"), VARIANTS)
@pytest.mark.parametrize(("hidden", "intermediate"), SHAPES)
def test_fp32_equals_the_reference(pool, isa, hidden, intermediate, phi, psi):
    for format, bias in (("fp32", True), ("bf16", False), ("int8", True), ("int4", False)):
        weights = case(hidden, intermediate, format, phi, psi, bias)
        x = torch.randn(21, hidden)
        want, got = reference(x, weights), gated_ffn(x, weights, Gemm("fp32", pool, isa))
        # A neuron within rounding of its threshold may fall on either side.
        assert ((got.counts - want.counts).abs() <= 1).all()
        same = (got.counts == want.counts).all(1)
        assert same.float().mean() > 0.8
        assert torch.allclose(got.y[same], want.y[same], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("format", FORMATS)
def test_bf16_is_as_near_as_its_roundings_allow(pool, format):
    weights = case(320, 768, format, threshold=0.0, bias=True)
    x = torch.randn(64, 320)
    want = reference(x, weights)
    got = gated_ffn(x, weights, Gemm("bf16", pool))
    assert relative(got.y, want.y) < 1.2e-2
    assert torch.equal(got.counts[:, 0], want.counts[:, 0])


@pytest.mark.parametrize(("phi", "psi"), VARIANTS)
@pytest.mark.parametrize("math", MATHS)
def test_mask_on_given_values(pool, isa, math, phi, psi):
    """The middle of the layer alone: here nothing is left to rounding."""
    gemm = Gemm(math, pool, isa)
    for neurons in (1, 15, 16, 255, 256, 257, 1000):
        g = (torch.randn(9, neurons) * 4).to(gemm.dtype)
        u = torch.randn(9, neurons).to(gemm.dtype)
        g[0, ::3], g[1, ::2], u[2, ::2] = 0.0, torch.nan, torch.inf
        weights = case(1, neurons, "fp32", phi, psi, threshold=3.0)
        weights.threshold[::5] = 0.0
        weights.threshold[::7] = torch.inf
        weights.threshold[::11] = -1.0
        a = activation(phi, g.float())
        keep = ~((a.abs() < weights.threshold) | (a == 0))
        want = torch.where(keep, a * up_activation(psi, u.float()), 0.0)
        counts = torch.zeros(9, 2, dtype=torch.int64)
        h = _gate(g.clone(), u, weights, 0, neurons, counts, gemm)
        assert torch.equal(counts[:, 0], keep.sum(1))
        assert torch.equal(counts[:, 1], (want != 0).sum(1))
        assert torch.equal(h == 0, want == 0)
        assert torch.allclose(
            h.float(), want, rtol=2e-6 if math == "fp32" else 2.0**-8, atol=0, equal_nan=True
        )


def test_threshold_is_inclusive_and_may_be_changed_in_place(pool):
    one = matrix(2, 1, "fp32")
    one.data.fill_(1.0)
    weights = FfnWeights(one, one, one, torch.tensor([1.0, 1.0001]), "relu", "id")
    for math in MATHS:
        gemm = Gemm(math, pool)
        weights.threshold.copy_(torch.tensor([1.0, 1.0001]))
        assert gated_ffn(torch.ones(10, 1), weights, gemm).counts.tolist() == [[1, 1]] * 10
        weights.threshold[1] = 0.5
        output = gated_ffn(torch.ones(10, 1), weights, gemm)
        assert output.counts.tolist() == [[2, 2]] * 10
        assert output.y.tolist() == [[2.0]] * 10


def test_nothing_kept_leaves_the_bias(pool):
    for math in MATHS:
        weights = case(20, 40, "int4", bias=True)
        weights.threshold.fill_(torch.inf)
        output = gated_ffn(torch.randn(12, 20), weights, Gemm(math, pool))
        assert weights.down_bias is not None
        assert torch.equal(output.y, weights.down_bias.expand(12, -1))
        assert not output.counts.any()


@pytest.mark.parametrize("math", MATHS)
def test_several_blocks(pool, monkeypatch, math):
    weights, x = case(32, 300, "int8", bias=True), torch.randn(25, 32)
    whole = gated_ffn(x, weights, Gemm(math, pool))
    monkeypatch.setattr(module, "_BLOCK_WEIGHTS", 64 * 32)
    parts = gated_ffn(x, weights, Gemm(math, pool))
    assert torch.equal(parts.counts, whole.counts)
    assert relative(parts.y, whole.y) < (1e-6 if math == "fp32" else 5e-3)


@pytest.mark.parametrize("format", ["bf16", "int4"])
@pytest.mark.parametrize("math", MATHS)
def test_bits_do_not_depend_on_threads(math, format):
    from sparseinfer.kernels.threads import CpuPool

    weights, x = case(96, 200, format), torch.randn(70, 96)
    outputs = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        outputs.append(gated_ffn(x, weights, Gemm(math, CpuPool(threads))))
    for other in outputs[1:]:
        assert torch.equal(outputs[0].y, other.y)
        assert torch.equal(outputs[0].counts, other.counts)


def test_misuse(pool):
    with pytest.raises(ValueError, match=r"x must be \[B, 4\]"):
        gated_ffn(torch.ones(3, 5), case(4, 8, "bf16"), Gemm("fp32", pool))
