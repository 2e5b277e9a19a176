"""Sketches, planes, low-rank and sign predictors in plain torch, against their definitions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sparseinfer.kernels.gated_ffn import FfnWeights
from sparseinfer.kernels.gated_ffn.reference import choose, gated_ffn
from sparseinfer.kernels.lowrank import LowRank
from sparseinfer.kernels.matrix import Matrix
from sparseinfer.kernels.planes import PlaneMatrix
from sparseinfer.kernels.quantize import quantize
from sparseinfer.kernels.sign import SignBits, most_negative
from sparseinfer.kernels.sign.reference import negatives
from sparseinfer.kernels.sketch import Sketch, round_input
from sparseinfer.kernels.sketch.matrix import (
    BITS,
    groups_of,
    row_bytes,
    side_by_side,
    sketch_matrix,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("columns", [1, 63, 64, 65, 128, 200, 256, 576])
def test_a_sketch_holds_the_values_of_its_definition(bits: int, columns: int) -> None:
    weight = normal(5, columns, seed=columns)
    sketch = sketch_matrix(weight, bits)
    groups = groups_of(columns)
    padded = torch.zeros(5, groups * 64)
    padded[:, :columns] = weight
    grouped = padded.view(5, groups, 64)
    half = 2 ** (bits - 1)
    scale = (grouped.abs().amax(2, keepdim=True) / (half - 0.5)).half().float()
    want = ((grouped / scale).round().clamp(-half, half - 1) * scale).flatten(1)[:, :columns]
    assert torch.equal(sketch.sketch_float(), want)
    assert sketch.data.shape[1] == row_bytes(bits, columns) == groups * (2 + 8 * bits)


def test_sketches_refuse_what_they_cannot_hold() -> None:
    with pytest.raises(ValueError, match="one of 2, 3, 4 bits"):
        sketch_matrix(normal(2, 64), 5)
    with pytest.raises(ValueError, match="NaN"):
        sketch_matrix(torch.full((1, 64), torch.nan), 4)


@pytest.mark.parametrize("columns", [8, 64, 100, 576])
def test_planes_hold_what_the_int8_matrix_held(columns: int) -> None:
    matrix = quantize(normal(7, columns), "int8")
    planes = PlaneMatrix.of(matrix)
    assert torch.equal(planes.float(), matrix.float())
    assert torch.equal(planes.whole(2, 5).data, matrix.data[2:5])
    assert planes.row_bytes == matrix.row_bytes
    # What is left out is at most half a step of 16 codes.
    scale = matrix.data[:, : 2 * (-(-columns // 64) * 2)].contiguous().view(torch.float16).float()
    off = (planes.sketch_float() - matrix.float()).abs()
    assert bool((off <= 7.5 * scale.repeat_interleave(32, 1)[:, :columns] + 1e-6).all())


def test_sign_bits_count_products_of_negative_sign() -> None:
    gate = normal(9, 100)
    gate[0, 3] = 0.0
    x = normal(4, 100, seed=1)
    x[1, 7] = 0.0
    predictor = SignBits.of(Matrix.of(gate), 1.0)
    want = ((x[:, None] < 0) != (gate[None] < 0)).sum(2)
    assert torch.equal(negatives(x, predictor), want)
    assert predictor.most == 50


@pytest.mark.parametrize(("alpha", "most"), [(0.0, 0), (1.0, 32), (1.5, 38), (float("inf"), 64)])
def test_alpha_is_sparseinfers(alpha: float, most: int) -> None:
    assert most_negative(alpha, 64) == most


def ffn(phi: str = "silu", bias: bool = False) -> FfnWeights:
    gate, up, down = (Matrix.of(normal(40, 64, seed=seed) * 0.2) for seed in (1, 2, 3))
    biases = [normal(n, seed=n) * 0.1 if bias else None for n in (40, 40, 64)]
    return FfnWeights(gate, up, down, torch.full((40,), 0.05), phi, "id", *biases)


def replaced(weights: FfnWeights, **changes: object) -> FfnWeights:
    return replace(weights, **changes)


def test_candidates_are_computed_as_without_a_predictor_and_nothing_else_is() -> None:
    weights = ffn()
    x = normal(3, 64, seed=5)
    candidates = torch.rand(3, 40, generator=torch.Generator().manual_seed(0)) < 0.5
    found = gated_ffn(x, weights, candidates)
    each = [
        gated_ffn(x[b : b + 1], replaced(weights, threshold=torch.where(row, 0.05, torch.inf)))
        for b, row in enumerate(candidates)
    ]
    assert torch.allclose(found.y, torch.cat([one.y for one in each]), atol=1e-6)
    assert torch.equal(found.counts, torch.cat([one.counts for one in each]))
    assert found.gates is not None
    assert found.gates.tolist() == candidates.sum(1).tolist()


def test_a_low_rank_predictor_lets_through_what_is_not_negative() -> None:
    inward, outward = normal(3, 64), normal(40, 3, seed=1)
    bias = normal(40, seed=2)
    bias[:2] = torch.tensor([torch.inf, -torch.inf])
    weights = replaced(ffn(), predictor=LowRank(Matrix.of(inward), Matrix.of(outward), bias))
    x = normal(3, 64, seed=5)
    chosen = choose(x, weights)
    assert chosen is not None
    assert torch.equal(chosen, x @ inward.T @ outward.T + bias >= 0)
    assert bool(chosen[:, 0].all())
    assert not bool(chosen[:, 1].any())
    x[0, 0] = torch.nan
    lets_through = choose(x, weights)
    assert lets_through is not None
    assert bool(lets_through[0].all())


def test_a_sketch_decides_alone() -> None:
    plain = ffn(bias=True)
    assert isinstance(plain.gate, Matrix)
    assert isinstance(plain.up, Matrix)
    sketch = Sketch(*side_by_side(plain.gate, plain.up, 4))
    threshold = torch.full((40,), 0.05)
    weights = replaced(plain, sketch=sketch, threshold=threshold)
    x = normal(3, 64, seed=5)
    rounded = round_input(x)
    assert float((rounded - x).abs().max()) <= float(x.abs().max()) / 127
    g = rounded @ sketch.gate.sketch_float().T + plain.gate_bias
    u = rounded @ sketch.up.sketch_float().T + plain.up_bias
    chosen = (torch.nn.functional.silu(g) * u).abs() >= 0.05
    everything = replaced(plain, threshold=torch.zeros(40))
    found, want = gated_ffn(x, weights), gated_ffn(x, everything, chosen)
    assert torch.equal(found.y, want.y)
    assert found.gates is not None
    assert torch.equal(found.gates, chosen.sum(1))
    assert 0 < int(found.gates.sum()) < 120


def test_rules_that_exclude_each_other_are_refused() -> None:
    plain = ffn()
    assert isinstance(plain.gate, Matrix)
    assert isinstance(plain.up, Matrix)
    sketch = Sketch(*side_by_side(plain.gate, plain.up, 4))
    signs = SignBits.of(plain.gate, 1.0)
    with pytest.raises(ValueError, match="decides alone"):
        replaced(plain, sketch=sketch, predictor=signs)
    with pytest.raises(ValueError, match="top_k"):
        replaced(plain, predictor=signs, top_k=3)
    with pytest.raises(ValueError, match="do not take candidates"):
        gated_ffn(
            normal(1, 64), replaced(plain, predictor=signs), torch.ones(1, 40, dtype=torch.bool)
        )
    rows = [quantize(normal(40, 64, seed=seed), "int8") for seed in (1, 2, 3)]
    whole = FfnWeights(*rows, torch.zeros(40), "silu", "id")
    with pytest.raises(ValueError, match="both be in planes"):
        replaced(whole, gate=PlaneMatrix.of(rows[0]))
    both = {"gate": PlaneMatrix.of(rows[0]), "up": PlaneMatrix.of(rows[1])}
    with pytest.raises(ValueError, match="sketched by them"):
        replaced(whole, **both)
