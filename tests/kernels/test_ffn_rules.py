"""The gated FFN with thresholds on inputs, top-k and matrices stored by input: reference, prompts,
and what decoding outside a decode step can do."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from ffn_oracle import case
from matrices import relative

from sparseinfer.kernels.gated_ffn import FfnWeights
from sparseinfer.kernels.gated_ffn.cpu import CpuGatedFfn
from sparseinfer.kernels.gated_ffn.prefill import gated_ffn as prefill
from sparseinfer.kernels.gated_ffn.reference import gated_ffn as reference
from sparseinfer.kernels.gemm import MATHS, Gemm, has_bf16
from sparseinfer.kernels.matrix import Matrix
from sparseinfer.kernels.quantize import quantize

H, I = 70, 130  # noqa: E741 - the project's names of the two sizes


def by_input(matrix: Matrix) -> Matrix:
    return quantize(matrix.float().T.contiguous(), matrix.format)


def vector(size: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.rand(size, generator=torch.Generator().manual_seed(seed))


RULES = {
    "gate": lambda w: {"gate_input": vector(H, 1)},
    "up": lambda w: {"up_input": vector(H, 2)},
    "down": lambda w: {"down_input": vector(I, 3, 0.5)},
    "all": lambda w: {
        "gate_input": vector(H, 1), "up_input": vector(H, 2), "down_input": vector(I, 3, 0.5)},
    "gate by input": lambda w: {
        "gate": by_input(w.gate), "gate_by_input": True, "gate_input": vector(H, 1)},
    "up by input": lambda w: {
        "up": by_input(w.up), "up_by_input": True, "up_input": vector(H, 2)},
    "top-k": lambda w: {"top_k": 17},
    "top-k, all by input": lambda w: {
        "gate": by_input(w.gate), "gate_by_input": True, "gate_input": vector(H, 1),
        "up": by_input(w.up), "up_by_input": True, "up_input": vector(H, 2),
        "down_input": vector(I, 3, 0.5), "top_k": 17},
}  # fmt: skip


def dense(x: torch.Tensor, w: FfnWeights):
    """y, counts and inputs in fp64, written from the definition."""

    def masked(values, threshold):
        if threshold is None:
            return values, torch.zeros(values.shape[0], dtype=torch.int64)
        keep = (values.abs() >= threshold) & (values != 0)
        return torch.where(keep, values, 0.0), keep.sum(1)

    def times(values, matrix, stored_by_input, bias):
        wide = matrix.float().double()
        return values @ (wide if stored_by_input else wide.T) + (0 if bias is None else bias)

    gate_x, gate_used = masked(x.double(), w.gate_input)
    up_x, up_used = masked(x.double(), w.up_input)
    a = torch.nn.functional.silu(times(gate_x, w.gate, w.gate_by_input, w.gate_bias))
    keep = (a.abs() >= w.threshold) & (a != 0)
    if w.top_k is not None:
        least = torch.where(keep, a, 0.0).abs().topk(w.top_k).values[:, -1:]
        keep &= a.abs() >= least
    h = torch.where(keep, a * times(up_x, w.up, w.up_by_input, w.up_bias), 0.0)
    h, down_used = masked(h, w.down_input)
    y = times(h, w.down, True, w.down_bias)
    counts = torch.stack((keep.sum(1), (h != 0).sum(1)), 1)
    return y, counts, torch.stack((gate_used, up_used, down_used), 1)


def made(rule: str, format: str, bias: bool = True, rows: int = 9):
    x, weights = case(H, I, format=format, bias=bias, rows=rows, density=1.0)
    return x, dataclasses.replace(weights, **RULES[rule](weights))


@pytest.mark.parametrize("rule", RULES)
def test_reference_and_prompts(pool, format, rule):
    x, weights = made(rule, format)
    y, counts, inputs = dense(x, weights)
    gemm = Gemm("fp32", pool)
    for found in (reference(x, weights), prefill(x, weights, gemm)):
        assert relative(found.y, y) < 1e-5
        assert torch.equal(found.counts, counts)
        if rule == "top-k":
            assert found.inputs is None
        else:
            assert torch.equal(found.inputs, inputs)


@pytest.mark.skipif(not has_bf16(), reason="no bf16 instructions")
@pytest.mark.parametrize("rule", RULES)
def test_prompts_in_bf16(pool, rule):
    x, weights = made(rule, "bf16")
    y, counts, _ = dense(x, weights)
    found = prefill(x, weights, Gemm("bf16", pool))
    # A value near its threshold, or near the k-th largest, may fall on the other side.
    assert relative(found.y, y) < (0.2 if weights.top_k or weights.down_input is not None else 3e-2)
    assert ((found.counts - counts).abs() <= 4).all()


@pytest.mark.parametrize("math", MATHS)
def test_prompts_of_many_blocks(pool, math):
    """Wide enough that neurons are worked on in several blocks."""
    if math == "bf16" and not has_bf16():
        pytest.skip("no bf16 instructions")
    x, weights = case(5000, 2000, format="bf16", rows=3, density=1.0)
    weights = dataclasses.replace(
        weights, gate_input=vector(5000, 1), up_input=vector(5000, 2), down_input=vector(2000, 3)
    )
    y, counts, inputs = dense(x, weights)
    found = prefill(x, weights, Gemm(math, pool))
    assert relative(found.y, y) < (1e-5 if math == "fp32" else 0.2)
    assert torch.equal(found.inputs[:, :2], inputs[:, :2])
    if math == "fp32":
        assert torch.equal(found.counts, counts)


@pytest.mark.parametrize("psi", ["id", "relu"])
@pytest.mark.parametrize("rows", [1, 3, 17])
def test_down_rows_below_their_threshold_stay_unread(isa, pool, format, rows, psi):
    x, weights = case(H, I, format=format, psi=psi, rows=rows, density=1.0, seed=1)
    threshold = vector(I, 3, 0.5)
    threshold[::3] = torch.inf
    weights = dataclasses.replace(weights, down_input=threshold)
    expected = reference(x, weights)
    spoilt = Matrix(weights.down.format, weights.down.data.clone(), H)
    spoilt.data[::3] = 0xFF if spoilt.data.dtype == torch.uint8 else torch.nan
    found = CpuGatedFfn(dataclasses.replace(weights, down=spoilt), pool, isa)(x)
    quantised = format in ("int8", "int4")
    assert relative(found.y, expected.y) < (0.1 if quantised else 1e-5)
    slack = 3 if quantised else 0
    assert ((found.counts - expected.counts).abs() <= slack).all()
    assert torch.equal(found.inputs[:, 2], found.counts[:, 1])
    assert not found.inputs[:, :2].any()
    assert (found.counts[:, 1] < found.counts[:, 0]).all()


@pytest.mark.parametrize("rule", [one for one in RULES if one != "down"])
def test_what_only_a_decode_step_can_do_is_refused(pool, rule):
    with pytest.raises(ValueError, match="in a decode step only"):
        CpuGatedFfn(made(rule, "fp32")[1], pool)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gate_input": torch.zeros(I)}, rf"gate_input must be \[{H}\]"),
        ({"up_input": torch.full((H,), torch.nan)}, "up_input has NaN"),
        ({"down_input": torch.zeros(H)}, rf"down_input must be \[{I}\]"),
        ({"top_k": 0}, f"top_k must be from 1 to {I}, not 0"),
        ({"top_k": I + 1}, f"top_k must be from 1 to {I}"),
        ({"up_by_input": True}, "up must be"),
        ({"gate_by_input": True}, "up must be"),
    ],
    ids=["gate", "up", "down", "none", "too many", "up layout", "gate layout"],
)
def test_what_does_not_fit(changes, message):
    _, weights = case(H, I)
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(weights, **changes)
