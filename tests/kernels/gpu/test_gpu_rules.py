"""Every rule of the gated FFN in Triton against the reference: top-k, thresholds on inputs, and
gate and up stored by input."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from ffn_oracle import case
from gpu_cases import DEVICE, ffn_to_gpu, normal
from matrices import poison, relative

from sparseinfer.kernels.gated_ffn import FfnOutput, FfnWeights
from sparseinfer.kernels.gated_ffn.gpu import GpuGatedFfn
from sparseinfer.kernels.gated_ffn.gpu_neurons import FfnTile
from sparseinfer.kernels.gated_ffn.gpu_rules import GpuAllGates, gpu_ffn
from sparseinfer.kernels.gated_ffn.reference import gated_ffn
from sparseinfer.kernels.matrix import Matrix
from sparseinfer.kernels.quantize import quantize

H, I = 70, 90  # noqa: E741 - the project's names of the two sizes
TILE = FfnTile(rows=16, per_processor=1)


def by_input(matrix: Matrix) -> Matrix:
    return quantize(matrix.float().T.contiguous(), matrix.format)


def vector(size: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.rand(size, generator=torch.Generator().manual_seed(seed))


GATE = {"gate_input": vector(H, 1)}
UP = {"up_input": vector(H, 2)}
DOWN = {"down_input": vector(I, 3, 0.3)}
RULES = {
    "gate input": lambda w: GATE,
    "up input": lambda w: UP,
    "inputs": lambda w: GATE | UP | DOWN,
    "gate by input": lambda w: {"gate": by_input(w.gate), "gate_by_input": True},
    "up by input": lambda w: UP | {"up": by_input(w.up), "up_by_input": True},
    "top-k": lambda w: {"top_k": 17},
    "top-k, thresholds": lambda w: GATE | UP | {"top_k": 17, "threshold": vector(I, 4, 0.4)},
    "top-k, gate by input": lambda w: {
        "gate": by_input(w.gate), "gate_by_input": True, "top_k": 17} | GATE | DOWN,
    "all by input": lambda w: GATE | UP | DOWN | {
        "gate": by_input(w.gate), "gate_by_input": True,
        "up": by_input(w.up), "up_by_input": True, "top_k": 17},
}  # fmt: skip


def made(rule: str, format="bf16", rows: int = 3, **rest) -> tuple[torch.Tensor, FfnWeights]:
    x, weights = case(H, I, format=format, bias=True, rows=rows, density=1, **rest)
    return x, replace(weights, **RULES[rule](weights))


def run(weights: FfnWeights, x: torch.Tensor) -> FfnOutput:
    """What the GPU kernels return, on the CPU."""
    found = gpu_ffn(ffn_to_gpu(weights), TILE)(x.to(DEVICE))
    return FfnOutput(*(None if part is None else part.cpu() for part in found))


def agrees(found: FfnOutput, want: FfnOutput) -> None:
    assert relative(found.y, want.y) < 1e-5
    assert torch.equal(found.counts, want.counts)
    assert (found.inputs is None) == (want.inputs is None)
    if found.inputs is not None:
        assert torch.equal(found.inputs, want.inputs)
    assert found.gates is None
    assert want.gates is None


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("phi", ["silu", "relu2"])
def test_every_rule(rule, phi):
    x, weights = made(rule, phi=phi)
    agrees(run(weights, x), gated_ffn(x, weights))


@pytest.mark.parametrize("format", ["fp32", "int8", "int4"])
@pytest.mark.parametrize("rule", ["inputs", "top-k", "all by input"])
def test_every_format(rule, format):
    x, weights = made(rule, format, rows=2, psi="relu")
    agrees(run(weights, x), gated_ffn(x, weights))


def test_candidates_with_thresholds_on_inputs():
    x, weights = made("inputs")
    candidates = torch.rand(3, I, generator=torch.Generator().manual_seed(1)) < 0.4
    want = gated_ffn(x, weights, candidates)
    found = GpuGatedFfn(ffn_to_gpu(weights), TILE)(x.to(DEVICE), candidates.to(DEVICE))
    assert relative(found.y.cpu(), want.y) < 1e-5
    assert found.inputs is not None
    assert found.gates is not None
    for got, expected in zip(found[1:], want[1:], strict=True):
        assert torch.equal(got.cpu(), expected)


@pytest.mark.parametrize("rule", ["inputs", "top-k", "all by input"])
def test_more_rows_than_one_pass_takes(rule):
    x, weights = made(rule, rows=18)
    found = run(weights, x)
    agrees(found, gated_ffn(x, weights))
    alone = run(weights, x[17:])
    assert torch.equal(alone.counts[0], found.counts[17])
    assert relative(alone.y[0], found.y[17]) < 1e-6
    assert run(weights, x[:0]).y.shape == (0, H)


@pytest.mark.parametrize("rule", ["top-k", "gate by input", "all by input"])
def test_rows_of_neurons_that_do_not_fire_are_not_read(rule):
    x, weights = made(rule, rows=2, phi="relu")
    off = torch.arange(I) % 3 == 0
    weights = replace(weights, threshold=torch.where(off, torch.inf, 0.0))
    want = run(weights, x)
    bad = {"down": poison(weights.down, off)}
    if not weights.up_by_input:
        bad["up"] = poison(weights.up, off)
    assert torch.equal(run(replace(weights, **bad), x).y, want.y)


def test_of_equal_activations_the_first_are_kept():
    ones = torch.ones(4, 2)
    gate = torch.tensor([[1.0, 0], [0, 2.0], [1.0, 0], [1.0, 0]])
    down = torch.tensor([[1.0, 0], [0, 1.0], [10.0, 0], [100.0, 0]])
    parts = [Matrix.of(part) for part in (gate, ones, down)]
    weights = FfnWeights(*parts, torch.zeros(4), "relu", "id", top_k=3)
    found = run(weights, torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 0.0]]))
    assert found.counts.tolist() == [[3, 3], [3, 0], [0, 0]]
    assert found.y.tolist() == [[22.0, 4.0], [0.0, 0.0], [0.0, 0.0]]


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of numpy, in the interpreter
@pytest.mark.parametrize("rule", ["inputs", "top-k", "all by input"])
def test_nan_shows_in_the_output(rule):
    x, weights = made(rule)
    x[1, 7] = torch.nan
    y = run(weights, x).y
    assert torch.isnan(y[1]).all()
    assert torch.isfinite(y[[0, 2]]).all()


def test_thresholds_may_change_in_place():
    for rule in ("top-k", "inputs"):
        x, weights = made(rule)
        moved = ffn_to_gpu(weights)
        op = gpu_ffn(moved, TILE)
        assert (op(x.to(DEVICE)).counts > 0).all()
        moved.threshold.fill_(torch.inf)
        assert not op(x.to(DEVICE)).counts.any()


def test_the_fast_handle_is_chosen_where_it_serves():
    for rule in RULES:
        weights = ffn_to_gpu(made(rule)[1])
        slow = weights.needs_all_gates
        assert isinstance(gpu_ffn(weights), GpuAllGates if slow else GpuGatedFfn)
    with pytest.raises(ValueError, match="x must be"):
        gpu_ffn(weights)(normal(1, H + 1).to(DEVICE))
