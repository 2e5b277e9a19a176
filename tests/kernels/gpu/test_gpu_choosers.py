"""Predictors in Triton against their references, alone and in the gated FFN."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from gpu_cases import DEVICE, ffn_to_gpu, normal, placed
from matrices import poison

from sparseinfer.kernels.gated_ffn import FfnWeights
from sparseinfer.kernels.gated_ffn.gpu import GpuGatedFfn
from sparseinfer.kernels.gated_ffn.gpu_neurons import FfnTile
from sparseinfer.kernels.gated_ffn.reference import choose, gated_ffn
from sparseinfer.kernels.gpu_rows import RowTile
from sparseinfer.kernels.lowrank import LowRank
from sparseinfer.kernels.lowrank.gpu import GpuLowRank
from sparseinfer.kernels.lowrank.reference import logits
from sparseinfer.kernels.matrix import Matrix
from sparseinfer.kernels.planes import PlaneMatrix
from sparseinfer.kernels.quantize import quantize
from sparseinfer.kernels.sign import SignBits
from sparseinfer.kernels.sign.gpu import GpuSign
from sparseinfer.kernels.sign.reference import candidates as sign_candidates
from sparseinfer.kernels.sketch import Sketch, round_input
from sparseinfer.kernels.sketch.gpu import GpuSketch, rounded_input
from sparseinfer.kernels.sketch.matrix import side_by_side
from sparseinfer.kernels.sketch.reference import estimates

TILE = RowTile(rows=16)
FFN_TILE = FfnTile(rows=16, per_processor=1)
NAMES = ("phi", "psi", "gate_bias", "up_bias")


def layer(hidden: int, inner: int, format="bf16", **rest) -> FfnWeights:
    """Weights with biases, threshold 0."""
    rows = [quantize(normal(inner, hidden, seed=seed) * hidden**-0.5, format) for seed in (1, 2, 3)]
    biases = [normal(n, seed=n) * 0.1 for n in (inner, inner, hidden)]
    rest = {"phi": "silu", "psi": "id", **rest}
    return FfnWeights(*rows, torch.zeros(inner), rest["phi"], rest["psi"], *biases)


def sketched(hidden: int, inner: int, bits: int, **rest) -> FfnWeights:
    """With a side copy of so many bits, or for 8 in planes."""
    if bits == 8:
        weights = layer(hidden, inner, "int8", **rest)
        gate, up = PlaneMatrix.of(weights.gate), PlaneMatrix.of(weights.up)
        return replace(weights, gate=gate, up=up, sketch=Sketch(gate, up))
    weights = layer(hidden, inner, **rest)
    return replace(weights, sketch=Sketch(*side_by_side(weights.gate, weights.up, bits)))


def between(values: torch.Tensor, density: float) -> torch.Tensor:
    """A threshold [I] for values [B, I] that rounding decides nowhere."""
    level = float(values.quantile(1 - density))
    threshold = torch.full((values.shape[1],), level)
    close = ((values - threshold).abs() <= 1e-3 * level + 1e-5).any(0)
    return torch.where(close, 0.0, threshold)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(
    ("hidden", "rows", "phi", "psi"),
    [(33, 1, "relu", "relu"), (200, 2, "silu", "id"), (330, 1, "silu", "id")],
)
def test_sketches_choose_what_their_estimates_say(bits, hidden, rows, phi, psi):
    weights = sketched(hidden, 23, bits, phi=phi, psi=psi)
    x = normal(rows, hidden, seed=rows)
    given = {name: getattr(weights, name) for name in NAMES}
    want = estimates(x, weights.sketch, **given)
    threshold = between(want, 0.4)
    op = GpuSketch(placed(weights.sketch), placed(threshold), TILE, **placed(given))
    assert torch.equal(op(x.to(DEVICE)).cpu(), ~(want < threshold))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of numpy, in the interpreter
def test_inputs_of_sketches_are_rounded_bit_for_bit():
    x = normal(3, 1100)
    x[0, :64] = 0.0
    x[1, 64:128] *= 1e-33
    x[2, 70] = torch.nan
    x[2, 1099] = torch.inf
    found, want = rounded_input(x.to(DEVICE)).cpu(), round_input(x)
    assert torch.equal(found.isnan(), want.isnan())
    assert torch.equal(found.nan_to_num(), want.nan_to_num())


@pytest.mark.parametrize("format", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize(("hidden", "rank", "rows"), [(40, 7, 1), (100, 70, 3)])
def test_low_rank_predictors_choose_by_their_logits(format, hidden, rank, rows):
    inward = quantize(normal(rank, hidden) * hidden**-0.5, format)
    outward = quantize(normal(35, rank, seed=1) * rank**-0.5, format)
    predictor = LowRank(inward, outward, torch.zeros(35))
    x = normal(rows, hidden, seed=rows)
    plain = logits(x, predictor)
    bias = torch.where((plain.abs() < 1e-4).any(0), 1.0, 0.0)
    bias[0], bias[1] = torch.inf, -torch.inf
    op = GpuLowRank(placed(replace(predictor, bias=bias)), TILE)
    found = op(x.to(DEVICE)).cpu()
    assert torch.equal(found, plain + bias >= 0)
    assert found[:, 0].all()
    assert not found[:, 1].any()
    x[0, 0] = torch.nan
    assert op(x.to(DEVICE))[0].all()


@pytest.mark.parametrize(("hidden", "rows"), [(3, 1), (64, 17), (2100, 2)])
def test_sign_predictors_count_signs(hidden, rows):
    x = normal(rows, hidden, seed=rows)
    x[0, 1] = 0.0
    if rows > 1:
        x[-1, 2] = torch.nan
    for alpha in (0.9, 1.1) if rows < 17 else (1.0,):
        predictor = SignBits.of(Matrix.of(normal(40, hidden)), alpha)
        found = GpuSign(placed(predictor))(x.to(DEVICE)).cpu()
        assert torch.equal(found, sign_candidates(x, predictor))


@pytest.mark.parametrize("kind", ["sketch", "planes", "sign", "lowrank"])
def test_the_ffn_computes_candidates_alone(kind):
    x = normal(2, 70, seed=5)
    if kind in ("sketch", "planes"):
        weights = sketched(70, 45, 8 if kind == "planes" else 4)
        given = {name: getattr(weights, name) for name in NAMES}
        threshold = between(estimates(x, weights.sketch, **given), 0.4)
    else:
        weights = layer(70, 45)
        threshold = torch.full((45,), 0.01)
        predictor = SignBits.of(weights.gate, 1.0)
        if kind == "lowrank":
            parts = (normal(9, 70, seed=8), normal(45, 9, seed=9))
            predictor = LowRank(*map(Matrix.of, parts), torch.zeros(45))
        weights = replace(weights, predictor=predictor)
    weights = replace(weights, threshold=threshold)
    want, chosen = gated_ffn(x, weights), choose(x, weights)
    found = GpuGatedFfn(ffn_to_gpu(weights), FFN_TILE)(x.to(DEVICE))
    assert found.gates is not None
    assert torch.equal(found.gates.cpu(), want.gates)
    assert 0 < int(chosen.sum()) < chosen.numel()
    assert torch.equal(found.counts.cpu(), want.counts)
    torch.testing.assert_close(found.y.cpu(), want.y, atol=2e-5, rtol=2e-4)
    unread = ~chosen.any(0)
    bad = {"down": poison(weights.down, unread)}
    if kind != "planes":
        bad |= {name: poison(getattr(weights, name), unread) for name in ("gate", "up")}
    again = GpuGatedFfn(ffn_to_gpu(replace(weights, **bad)), FFN_TILE)(x.to(DEVICE))
    assert torch.equal(again.y, found.y)


def test_bad_input_shows_in_the_output():
    for weights in (sketched(40, 20, 4), layer(40, 20)):
        if weights.sketch is None:
            weights = replace(weights, predictor=SignBits.of(weights.gate, 0.5))
        weights = replace(weights, threshold=torch.full((20,), 0.1))
        x = normal(2, 40)
        x[1, 7] = torch.nan
        y = GpuGatedFfn(ffn_to_gpu(weights), FFN_TILE)(x.to(DEVICE)).y
        assert torch.isfinite(y[0]).all()
        assert torch.isnan(y[1]).all()


def test_wrong_input():
    op = GpuSign(placed(SignBits.of(Matrix.of(normal(5, 8)), 1.0)))
    with pytest.raises(ValueError, match=r"x must be \[B, 8\] fp32"):
        op(torch.ones(1, 7, device=DEVICE))
    with pytest.raises(ValueError, match="contiguous"):
        op(torch.ones(2, 16, device=DEVICE)[:, ::2])
