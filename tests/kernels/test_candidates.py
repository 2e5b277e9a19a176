"""Native predictors, sketches and the gated FFN over candidates, against plain torch."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from matrices import bundle

from sparseinfer.kernels.gated_ffn import FfnWeights
from sparseinfer.kernels.gated_ffn.cpu import CpuGatedFfn
from sparseinfer.kernels.gated_ffn.reference import gated_ffn
from sparseinfer.kernels.isa import isa_available
from sparseinfer.kernels.lowrank import LowRank
from sparseinfer.kernels.lowrank.cpu import CpuLowRank
from sparseinfer.kernels.lowrank.reference import logits
from sparseinfer.kernels.masks import from_bits, to_bits
from sparseinfer.kernels.matrix import Format, Matrix
from sparseinfer.kernels.planes import PlaneMatrix
from sparseinfer.kernels.quantize import quantize
from sparseinfer.kernels.sign import SignBits
from sparseinfer.kernels.sign.cpu import CpuSign
from sparseinfer.kernels.sign.reference import candidates as sign_reference
from sparseinfer.kernels.sketch import Sketch
from sparseinfer.kernels.sketch.cpu import CpuSketch
from sparseinfer.kernels.sketch.matrix import side_by_side
from sparseinfer.kernels.sketch.reference import estimates
from sparseinfer.kernels.threads import CpuPool

SHAPES = [(64, 96), (576, 131), (8, 3), (200, 50), (72, 400), (1088, 33)]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ffn(
    hidden: int,
    inner: int,
    format: Format,
    *,
    phi: str = "silu",
    psi: str = "id",
    bias: bool = False,
) -> FfnWeights:
    rows = [quantize(normal(inner, hidden, seed=seed) * hidden**-0.5, format) for seed in (1, 2, 3)]
    up, down = bundle(rows[1], rows[2])
    biases = [normal(n, seed=n) * 0.1 if bias else None for n in (inner, inner, hidden)]
    return FfnWeights(rows[0], up, down, torch.zeros(inner), phi, psi, *biases)


def in_planes(weights: FfnWeights) -> FfnWeights:
    assert isinstance(weights.gate, Matrix)
    assert isinstance(weights.up, Matrix)
    gate, up = PlaneMatrix.of(weights.gate), PlaneMatrix.of(weights.up)
    return replace(weights, gate=gate, up=up, sketch=Sketch(gate, up))


def with_side_copy(weights: FfnWeights, bits: int) -> FfnWeights:
    assert isinstance(weights.gate, Matrix)
    assert isinstance(weights.up, Matrix)
    return replace(weights, sketch=Sketch(*side_by_side(weights.gate, weights.up, bits)))


def estimated(x: torch.Tensor, weights: FfnWeights) -> torch.Tensor:
    assert weights.sketch is not None
    return estimates(
        x,
        weights.sketch,
        phi=weights.phi,
        psi=weights.psi,
        gate_bias=weights.gate_bias,
        up_bias=weights.up_bias,
    )


def between(values: torch.Tensor, density: float) -> torch.Tensor:
    """A threshold [I] for values [B, I] that rounding decides nowhere."""
    if density == 0:
        return torch.full((values.shape[1],), torch.inf)
    if density == 1:
        return torch.zeros(values.shape[1])
    level = float(values.quantile(1 - density))
    threshold = torch.full((values.shape[1],), level)
    close = ((values - threshold).abs() <= 2e-3 * level + 1e-5).any(0)
    return torch.where(close, 0.0, threshold)


def near(found: torch.Tensor, want: torch.Tensor, tolerance: float) -> None:
    size = float(want.abs().max()) + 1e-6
    assert float((found - want).abs().max()) <= tolerance * size


TOLERANCE = {"fp32": 2e-5, "bf16": 2e-5, "int8": 2e-4}


def test_masks_survive_the_way_to_bits_and_back() -> None:
    mask = torch.rand(37, 21) < 0.5
    assert torch.equal(from_bits(to_bits(mask), 37), mask)


@pytest.mark.parametrize("isa", isa_available())
@pytest.mark.parametrize(("hidden", "inner"), SHAPES)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_sketches_choose_what_their_estimates_say(
    isa: str, hidden: int, inner: int, bits: int
) -> None:
    pool = CpuPool(2)
    for rows, (phi, psi), density in product(
        (1, 5, 19), (("silu", "id"), ("relu", "relu")), (0, 0.4, 1)
    ):
        plain = ffn(
            hidden, inner, "int8" if bits == 8 else "bf16", phi=phi, psi=psi, bias=rows == 5
        )
        weights = in_planes(plain) if bits == 8 else with_side_copy(plain, bits)
        x = normal(rows, hidden, seed=rows)
        estimate = estimated(x, weights)
        threshold = between(estimate, density)
        assert weights.sketch is not None
        found = CpuSketch(
            weights.sketch, threshold, pool, isa, phi=phi, psi=psi,
            gate_bias=weights.gate_bias, up_bias=weights.up_bias,
        )(x)  # fmt: skip
        assert torch.equal(found, ~(estimate < threshold)), (rows, phi, density)


@pytest.mark.parametrize("isa", isa_available())
@pytest.mark.parametrize("format", ["fp32", "bf16", "int8"])
def test_low_rank_predictors_choose_by_their_logits(isa: str, format: Format) -> None:
    for (hidden, inner), rank, rows in product(SHAPES, (1, 7, 70), (1, 18)):
        inward = quantize(normal(rank, hidden) * hidden**-0.5, format)
        outward = quantize(normal(inner, rank, seed=1) * rank**-0.5, format)
        predictor = LowRank(inward, outward, torch.zeros(inner))
        x = normal(rows, hidden, seed=rows)
        plain = logits(x, predictor)
        bias = torch.where((plain.abs() < 2e-3).any(0), 1.0, 0.0)
        bias[0] = torch.inf
        predictor = replace(predictor, bias=bias)
        found = CpuLowRank(predictor, CpuPool(2), isa)(x)
        unsure = (plain + bias).abs() < 1e-3
        assert torch.equal(found | unsure, (plain + bias >= 0) | unsure)
        assert bool(found[:, 0].all())
        x[0, 0] = torch.nan
        assert bool(CpuLowRank(predictor, CpuPool(1), isa)(x)[0].all())


@pytest.mark.parametrize("isa", isa_available())
@pytest.mark.parametrize(("hidden", "inner"), SHAPES)
def test_sign_predictors_count_signs(isa: str, hidden: int, inner: int) -> None:
    for alpha, rows in product((0.0, 0.9, 1.1, float("inf")), (1, 17)):
        predictor = SignBits.of(Matrix.of(normal(inner, hidden)), alpha)
        x = normal(rows, hidden, seed=rows)
        x[0, 1] = 0.0
        if rows > 1:
            x[-1, 2] = torch.nan
        found = CpuSign(predictor, CpuPool(2), isa)(x)
        assert torch.equal(found, sign_reference(x, predictor))


def poisoned(weights: FfnWeights, unread: torch.Tensor, unread_down: torch.Tensor) -> FfnWeights:
    """The weights with NaN in every row that no row of x may read; fp32 and bf16 only."""

    def spoiled(matrix: object, rows: torch.Tensor) -> Matrix:
        assert isinstance(matrix, Matrix)
        data = matrix.data.clone()
        data[rows] = torch.nan
        return Matrix(matrix.format, data, matrix.columns)

    return replace(
        weights,
        gate=spoiled(weights.gate, unread),
        up=spoiled(weights.up, unread_down),
        down=spoiled(weights.down, unread_down),
    )


@pytest.mark.parametrize("isa", isa_available())
@pytest.mark.parametrize("format", ["fp32", "bf16", "int8", "int4"])
@pytest.mark.parametrize(("hidden", "inner"), SHAPES[:5])
def test_the_ffn_over_candidates(isa: str, format: Format, hidden: int, inner: int) -> None:
    for rows, density, (phi, psi) in product(
        (1, 3, 17), (0.0, 0.1, 0.6, 1.0), (("silu", "id"), ("relu", "relu"), ("relu2", "id"))
    ):
        weights = ffn(hidden, inner, format, phi=phi, psi=psi, bias=rows == 3)
        x = normal(rows, hidden, seed=rows + hidden)
        random = torch.Generator().manual_seed(rows)
        candidates = torch.rand(rows, inner, generator=random) < density
        found = CpuGatedFfn(weights, CpuPool(2), isa)(x, candidates)
        if format in ("fp32", "bf16"):
            near(found.y, gated_ffn(x, weights, candidates).y, TOLERANCE[format])
        assert found.gates is not None
        assert found.gates.tolist() == candidates.sum(1).tolist()
        assert bool((found.counts <= found.gates[:, None]).all())
        alone = CpuGatedFfn(weights, CpuPool(1), isa)
        for b in range(rows):
            one = alone(x[b : b + 1], candidates[b : b + 1])
            assert torch.equal(one.y[0], found.y[b]), "bits depend on threads or batch"
            assert torch.equal(one.counts[0], found.counts[b])
            # Gate-first, with all others switched off: the same bits by other code.
            off = replace(weights, threshold=torch.where(candidates[b], 0.0, torch.inf))
            assert torch.equal(CpuGatedFfn(off, CpuPool(2), isa)(x[b : b + 1]).y[0], found.y[b])
        if format in ("fp32", "bf16"):
            unread = ~candidates.any(0)
            spoiled = poisoned(weights, unread, unread)
            assert torch.equal(CpuGatedFfn(spoiled, CpuPool(2), isa)(x, candidates).y, found.y)


@pytest.mark.parametrize("isa", isa_available())
def test_with_all_neurons_as_candidates_the_bits_are_those_without(isa: str) -> None:
    for format, rows in product(("fp32", "bf16", "int8", "int4"), (1, 6)):
        weights = replace(ffn(200, 150, format), threshold=torch.full((150,), 0.05))
        x = normal(rows, 200)
        run = CpuGatedFfn(weights, CpuPool(2), isa)
        everything = torch.ones(rows, 150, dtype=torch.bool)
        assert torch.equal(run(x).y, run(x, everything).y)
        assert torch.equal(run(x).counts, run(x, everything).counts)


@pytest.mark.parametrize("isa", isa_available())
@pytest.mark.parametrize(("hidden", "inner"), SHAPES)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_ffn_under_a_sketch(isa: str, hidden: int, inner: int, bits: int) -> None:
    for rows, density in product((1, 6), (0, 0.3, 1)):
        format: Format = "int8" if bits == 8 else "bf16"
        plain = ffn(hidden, inner, format, bias=rows == 6)
        weights = in_planes(plain) if bits == 8 else with_side_copy(plain, bits)
        x = normal(rows, hidden, seed=rows)
        threshold = between(estimated(x, weights), density)
        weights = replace(weights, threshold=threshold)
        want = gated_ffn(x, weights)
        found = CpuGatedFfn(weights, CpuPool(2), isa)(x)
        near(found.y, want.y, TOLERANCE[format])
        assert found.gates is not None
        assert want.gates is not None
        assert found.gates.tolist() == want.gates.tolist()
        alone = CpuGatedFfn(weights, CpuPool(1), isa)
        for b in range(rows):
            assert torch.equal(alone(x[b : b + 1]).y[0], found.y[b])


@pytest.mark.parametrize("isa", isa_available())
def test_bad_input_shows_in_the_output(isa: str) -> None:
    plain = ffn(200, 50, "bf16")
    assert isinstance(plain.gate, Matrix)
    for weights in (
        replace(with_side_copy(plain, 4), threshold=torch.full((50,), 0.1)),
        replace(in_planes(ffn(200, 50, "int8")), threshold=torch.full((50,), 0.1)),
        replace(plain, predictor=SignBits.of(plain.gate, 0.5)),
    ):
        x = normal(2, 200)
        x[1, 7] = torch.nan
        y = CpuGatedFfn(weights, CpuPool(2), isa)(x).y
        assert bool(torch.isfinite(y[0]).all())
        assert bool(torch.isnan(y[1]).all())
