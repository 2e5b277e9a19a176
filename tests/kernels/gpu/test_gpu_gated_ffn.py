"""The gated FFN in Triton against fp64 and the reference, and what it reads."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from ffn_oracle import VARIANTS, Answer, case, oracle, small
from gpu_cases import DEVICE, ffn_to_gpu, normal
from matrices import poison, relative

from sparseinfer.kernels.gated_ffn import FfnOutput, FfnWeights
from sparseinfer.kernels.gated_ffn.gpu import GpuGatedFfn
from sparseinfer.kernels.gated_ffn.gpu_neurons import FfnTile
from sparseinfer.kernels.gated_ffn.reference import gated_ffn
from sparseinfer.kernels.matrix import Matrix

# Few programs and large tiles: the interpreter's time grows with the number of operations.
TILE = FfnTile(rows=16, per_processor=1)
NARROW = FfnTile(rows=4, columns=64, per_processor=2)


def run(weights: FfnWeights, x: torch.Tensor, candidates=None, tile: FfnTile = TILE):
    """What the GPU kernels return, on the CPU."""
    chosen = None if candidates is None else candidates.to(DEVICE)
    found = GpuGatedFfn(ffn_to_gpu(weights), tile)(x.to(DEVICE), chosen)
    return FfnOutput(*(None if part is None else part.cpu() for part in found))


def agrees(found: FfnOutput, want: FfnOutput) -> None:
    assert torch.equal(found.counts, want.counts)
    torch.testing.assert_close(found.y, want.y, atol=2e-5, rtol=2e-4)
    assert relative(found.y, want.y) < 1e-5


def spoiled(weights: FfnWeights, answer: Answer, gate: torch.Tensor | None = None) -> FfnWeights:
    """The weights with NaN in every row that no row of x needs."""
    changes = {
        "up": poison(weights.up, answer.up_unread),
        "down": poison(weights.down, answer.down_unread),
    }
    if gate is not None:
        changes["gate"] = poison(weights.gate, gate)
    return replace(weights, **changes)


CASES = [
    # hidden, intermediate, rows, density, bias
    (1, 1, 1, 1, False),
    (33, 47, 1, 0.3, True),
    (70, 40, 3, 0.5, False),
    (64, 65, 2, 0, True),
    (100, 33, 5, 1, True),
    (48, 70, 16, 0.1, False),
]


@pytest.mark.parametrize(("phi", "psi"), VARIANTS)
@pytest.mark.parametrize("number", [0, 1])
def test_gate_first_for_every_activation(phi, psi, number):
    hidden, inner, rows, density, bias = CASES[(VARIANTS.index((phi, psi)) + 3 * number) % 6]
    x, weights = case(
        hidden, inner, phi=phi, psi=psi, bias=bias, density=density, rows=rows, seed=number
    )
    answer = oracle(x, weights, rounds_inputs=False)
    found = run(weights, x)
    answer.check(found)
    assert found.gates is None
    assert torch.equal(run(spoiled(weights, answer), x).y, found.y)


@pytest.mark.parametrize("format", ["fp32", "int8", "int4"])
@pytest.mark.parametrize("tile", [TILE, NARROW], ids=["wide", "narrow"])
def test_formats(format, tile):
    x, weights = case(70, 50, format=format, density=0.4, rows=3, bias=True, seed=1)
    answer = oracle(x, weights, rounds_inputs=False)
    found = run(weights, x, tile=tile)
    answer.check(found)
    assert torch.equal(run(spoiled(weights, answer), x, tile=tile).y, found.y)


def test_fp16():
    x, weights = case(40, 50, density=0.4, rows=2)
    parts = {
        name: Matrix.of(getattr(weights, name).float().half()) for name in ("gate", "up", "down")
    }
    weights = replace(weights, **parts)
    agrees(run(weights, x), gated_ffn(x, weights))


@pytest.mark.parametrize(
    ("density", "tile"), [(0, TILE), (0.3, TILE), (0.3, NARROW), (1, NARROW), (1, TILE)]
)
def test_candidates(density, tile):
    x, weights = case(70, 50, phi="relu", density=0.6, rows=3, bias=True)
    candidates = torch.rand(3, 50, generator=torch.Generator().manual_seed(1)) < density
    want = gated_ffn(x, weights, candidates)
    found = run(weights, x, candidates, tile)
    agrees(found, want)
    assert found.gates.tolist() == candidates.sum(1).tolist()
    unread = ~candidates.any(0)
    bad = {name: poison(getattr(weights, name), unread) for name in ("gate", "up", "down")}
    assert torch.equal(run(replace(weights, **bad), x, candidates, tile).y, found.y)


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_candidates_of_quantised_weights(format):
    x, weights = case(70, 50, psi="relu", format=format, density=0.6, rows=2)
    candidates = torch.rand(2, 50, generator=torch.Generator().manual_seed(1)) < 0.4
    agrees(run(weights, x, candidates), gated_ffn(x, weights, candidates))


@pytest.mark.parametrize("tile", [TILE, NARROW], ids=["wide", "narrow"])
def test_every_row_has_a_mask_of_its_own(tile):
    x, weights = case(33, 40, phi="relu", psi="relu", density=0.2, rows=17)
    together = run(weights, x, tile=tile)
    answer = oracle(x, weights, rounds_inputs=False)
    answer.check(together)
    assert len({tuple(mask) for mask in answer.keep.tolist()}) > 10
    for row in (0, 16):
        alone = run(weights, x[row : row + 1], tile=tile)
        assert torch.equal(alone.counts[0], together.counts[row])
        assert relative(alone.y[0], together.y[row]) < 1e-6


def test_the_default_tile():
    x, weights = case(70, 35, density=0.5, rows=2)
    answer = oracle(x, weights, rounds_inputs=False)
    answer.check(run(weights, x, tile=FfnTile()))


def test_a_threshold_that_is_met_exactly_is_reached_and_may_change_in_place():
    ones = torch.ones(3, 2)
    gate = torch.tensor([[1.0, 0], [0, 1.0], [-1.0, 0]])
    weights = ffn_to_gpu(small(gate, ones, ones, torch.tensor([2.0, 3.001, 0.0]), "relu", "id"))
    op = GpuGatedFfn(weights, TILE)
    x = torch.tensor([[2.0, 3.0]], device=DEVICE)
    found = op(x)
    assert (found.y.tolist(), found.counts.tolist()) == ([[10.0, 10.0]], [[1, 1]])
    weights.threshold[1] = 3.0
    assert (op(x).y.tolist(), op(x).counts.tolist()) == ([[25.0, 25.0]], [[2, 2]])
    weights.threshold.fill_(torch.inf)
    assert (op(x).y.tolist(), op(x).counts.tolist()) == ([[0.0, 0.0]], [[0, 0]])
    x[0, 0] = torch.nan
    assert torch.isnan(op(x).y).all()


@pytest.mark.parametrize("tile", [TILE, NARROW], ids=["wide", "narrow"])
def test_thresholds_on_the_inputs_of_down(tile):
    x, weights = case(40, 50, phi="relu", density=0.6, rows=2)
    h = gated_ffn(x, weights)
    weights = replace(weights, down_input=torch.full((50,), 0.2))
    want = gated_ffn(x, weights)
    assert (want.counts[:, 1] < h.counts[:, 1]).all()
    found = run(weights, x, tile=tile)
    agrees(found, want)
    assert torch.equal(found.inputs, want.inputs)


def test_two_calls_give_the_same_bits():
    x, weights = case(70, 50, density=0.5, rows=4)
    op, moved_x = GpuGatedFfn(ffn_to_gpu(weights), NARROW), x.to(DEVICE)
    first, second = op(moved_x), op(moved_x)
    assert torch.equal(first.y, second.y)
    assert torch.equal(first.counts, second.counts)
    assert op(moved_x[:0]).y.shape == (0, 70)


def test_what_does_not_run():
    _, weights = case(8, 9)
    with pytest.raises(ValueError, match="all gates first"):
        GpuGatedFfn(ffn_to_gpu(replace(weights, top_k=2)))
    op = GpuGatedFfn(ffn_to_gpu(weights))
    x = normal(1, 8).to(DEVICE)
    with pytest.raises(ValueError, match="x must be"):
        op(x[:, :7])
    with pytest.raises(ValueError, match="candidates must be"):
        op(x, torch.ones(1, 8, dtype=torch.bool, device=DEVICE))
