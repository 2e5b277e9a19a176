"""Candidates in prompts: chosen block by block, they are the reference's, and so is the output."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from matrices import matrix, relative

from sparseinfer.kernels import gemm as module
from sparseinfer.kernels.gated_ffn import FfnWeights
from sparseinfer.kernels.gated_ffn.block_chooser import BlockChooser
from sparseinfer.kernels.gated_ffn.prefill import gated_ffn
from sparseinfer.kernels.gated_ffn.reference import choose
from sparseinfer.kernels.gated_ffn.reference import gated_ffn as reference
from sparseinfer.kernels.gemm import Gemm
from sparseinfer.kernels.lowrank import LowRank
from sparseinfer.kernels.planes import PlaneMatrix
from sparseinfer.kernels.sign import SignBits
from sparseinfer.kernels.sketch import Sketch
from sparseinfer.kernels.sketch.matrix import side_by_side

SKETCHES = [("fp32", 2), ("fp32", 3), ("fp32", 4), ("bf16", 2), ("bf16", 3), ("bf16", 4),
            ("int8", 4)]  # fmt: skip
PREDICTORS = [("lowrank", "fp32"), ("lowrank", "bf16"), ("lowrank", "int8"), ("sign", "fp32")]
SHAPES = [(1, 1), (17, 3), (65, 130), (129, 300), (200, 513)]


def plain(hidden: int, intermediate: int, format, phi: str = "silu", psi: str = "id", bias=False):
    torch.manual_seed(hidden)
    gate, up, down = (matrix(intermediate, hidden, format, seed) for seed in range(3))
    biases = [torch.randn(n) * 0.1 if bias else None for n in (intermediate, intermediate, hidden)]
    threshold = torch.rand(intermediate) * 0.2
    return FfnWeights(gate, up, down, threshold, phi, psi, *biases)


def sketched(weights: FfnWeights, bits: int) -> FfnWeights:
    if weights.gate.format == "int8":
        planes = [PlaneMatrix.of(one) for one in (weights.gate, weights.up)]
        return replace(weights, gate=planes[0], up=planes[1], sketch=Sketch(*planes))
    return replace(weights, sketch=Sketch(*side_by_side(weights.gate, weights.up, bits)))


def predicted(weights: FfnWeights, kind: str, format) -> FfnWeights:
    intermediate, hidden = weights.gate.shape
    if kind == "sign":
        return replace(weights, predictor=SignBits.of(weights.gate, 1.1))
    rank = max(1, hidden // 3)
    inward, outward = matrix(rank, hidden, format, 5), matrix(intermediate, rank, format, 6)
    bias = torch.randn(intermediate)
    bias[::7], bias[1::7] = torch.inf, -torch.inf
    return replace(weights, predictor=LowRank(inward, outward, bias))


def check(weights: FfnWeights, x: torch.Tensor, gemm: Gemm) -> None:
    want, got = reference(x, weights), gated_ffn(x, weights, gemm)
    assert got.gates is not None
    assert want.gates is not None
    # A neuron within rounding of its threshold may fall on either side.
    assert ((got.gates - want.gates).abs() <= 1).all()
    assert ((got.counts - want.counts).abs() <= 1).all()
    same = (got.counts == want.counts).all(1) & (got.gates == want.gates)
    assert same.float().mean() > 0.9
    assert torch.allclose(got.y[same], want.y[same], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("format", "bits"), SKETCHES)
@pytest.mark.parametrize(("phi", "psi", "bias"), [
    ("silu", "id", False), ("silu", "id", True), ("relu", "relu", True), ("relu2", "id", False),
])  # fmt: skip
def test_sketches_are_the_references(pool, isa, format, bits, phi, psi, bias):
    for hidden, intermediate in SHAPES:
        weights = sketched(plain(hidden, intermediate, format, phi, psi, bias), bits)
        check(weights, torch.randn(21, hidden), Gemm("fp32", pool, isa))


@pytest.mark.parametrize(("kind", "format"), PREDICTORS)
@pytest.mark.parametrize(("phi", "psi", "bias"), [
    ("silu", "id", False), ("relu", "relu", True), ("relu2", "id", True),
])  # fmt: skip
def test_predictors_are_the_references(pool, isa, kind, format, phi, psi, bias):
    for hidden, intermediate in SHAPES:
        for stored in ("fp32", "int4") if kind == "sign" else ("fp32", "int8"):
            weights = predicted(plain(hidden, intermediate, stored, phi, psi, bias), kind, format)
            check(weights, torch.randn(21, hidden), Gemm("fp32", pool, isa))


@pytest.mark.parametrize("rows", [1, 2, 9, 37])
@pytest.mark.parametrize("case", ["sketch", "planes", "lowrank", "sign"])
def test_any_number_of_rows_in_blocks_of_any_size(pool, monkeypatch, case, rows):
    weights = plain(72, 333, "int8" if case == "planes" else "fp32", bias=True)
    made = (
        sketched(weights, 4) if case in ("sketch", "planes") else predicted(weights, case, "int8")
    )
    x = torch.randn(rows, 72)
    whole = gated_ffn(x, made, Gemm("fp32", pool))
    monkeypatch.setattr(module, "_BLOCK_WEIGHTS", 64 * 72)
    blocks = gated_ffn(x, made, Gemm("fp32", pool))
    check(made, x, Gemm("fp32", pool))
    assert torch.equal(blocks.counts, whole.counts)
    assert torch.equal(blocks.gates, whole.gates)
    assert torch.allclose(blocks.y, whole.y, atol=1e-5)


@pytest.mark.parametrize("case", ["sketch", "planes", "lowrank", "sign"])
def test_candidates_are_chosen_in_fp32_whatever_the_arithmetic(pool, case):
    weights = plain(128, 256, "int8" if case == "planes" else "bf16")
    made = (
        sketched(weights, 4) if case in ("sketch", "planes") else predicted(weights, case, "bf16")
    )
    x = torch.randn(33, 128)
    want = reference(x, made)
    got = gated_ffn(x, made, Gemm("bf16", pool))
    assert torch.equal(got.gates, want.gates)
    assert relative(got.y, want.y) < 2e-2


@pytest.mark.parametrize("case", ["sketch", "planes", "lowrank", "sign"])
def test_nan_reaches_the_output(pool, case):
    weights = plain(64, 130, "int8" if case == "planes" else "fp32")
    made = sketched(weights, 3 if case == "sketch" else 4)
    made = made if case in ("sketch", "planes") else predicted(weights, case, "fp32")
    x = torch.randn(12, 64)
    x[3, 5] = torch.nan
    got = gated_ffn(x, made, Gemm("fp32", pool))
    assert got.y[3].isnan().any()
    assert got.y[:3].isfinite().all()
    assert got.y[4:].isfinite().all()


def test_a_block_chooses_what_the_reference_chooses_of_it(pool):
    x = torch.randn(12, 129)
    for format, bits in SKETCHES:
        made = sketched(plain(129, 300, format, bias=True), bits)
        want = choose(x, made)
        assert want is not None
        got = BlockChooser(x, made, Gemm("bf16", pool))(70, 201)
        assert torch.equal(got, want[:, 70:201]), (format, bits)
        assert 0 < int(got.sum()) < got.numel()


@pytest.mark.parametrize("columns", [1, 40, 64, 65, 192, 320, 576])
def test_a_sketch_as_int4_has_the_same_values(columns):
    for bits in (2, 3, 4):
        sketch = side_by_side(*(matrix(6, columns, "fp32", seed) for seed in (1, 2)), bits)[0]
        assert sketch.int4(2, 5).shape == (3, columns)
        assert torch.equal(sketch.int4(2, 5).float(), sketch.sketch_float()[2:5])
