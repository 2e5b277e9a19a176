"""Decode calls in a CUDA graph: nothing in them waits for the GPU or asks it for a number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from ffn_oracle import case
from gpu_cases import DEVICE, ffn_to_gpu, gpu_matrix, normal

from sparseinfer.kernels.gated_ffn import FfnWeights
from sparseinfer.kernels.gated_ffn.gpu_rules import gpu_ffn
from sparseinfer.kernels.linear.gpu import GpuLinear
from sparseinfer.kernels.quantize import quantize
from sparseinfer.kernels.sign import SignBits
from sparseinfer.kernels.sparse_input_linear.gpu import GpuSparseInputLinear

pytestmark = pytest.mark.skipif(DEVICE.type != "cuda", reason="CUDA graphs need a GPU")


def check(call: Callable[[torch.Tensor], torch.Tensor], rows: int, columns: int) -> None:
    """Captures a call and replays it with other inputs, each twice."""
    x = normal(rows, columns).to(DEVICE)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call(x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = call(x)
    for seed in (1, 2, 1):
        x.copy_(normal(rows, columns, seed=seed).to(DEVICE))
        graph.replay()
        found = y.clone()
        graph.replay()
        assert torch.equal(found, y)
        assert torch.equal(found, call(x))


@pytest.mark.parametrize("rows", [1, 5])
def test_linear(rows):
    op = GpuLinear(gpu_matrix(50, 96, "bf16"), None)
    check(op, rows, 96)


@pytest.mark.parametrize("rows", [1, 5])
def test_sparse_input_linear(rows):
    threshold = torch.full((96,), 0.5, device=DEVICE)
    op = GpuSparseInputLinear(gpu_matrix(96, 50, "int8"), threshold, None)
    check(lambda x: op(x).y, rows, 96)


def in_the_order_of_inputs(weights: FfnWeights) -> FfnWeights:
    """Gate and up stored by input, with thresholds."""
    gate, up = (quantize(one.float().T.contiguous(), "bf16") for one in (weights.gate, weights.up))
    least = torch.full((96,), 0.5)
    return replace(
        weights, gate=gate, up=up, gate_by_input=True, up_by_input=True, gate_input=least,
        up_input=least, down_input=torch.full((300,), 0.1),
    )  # fmt: skip


RULES = {
    "gate-first": lambda weights: weights,
    "sign": lambda weights: replace(weights, predictor=SignBits.of(weights.gate, 1.0)),
    "top-k": lambda weights: replace(weights, top_k=40),
    "by input": in_the_order_of_inputs,
}


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("rule", RULES)
def test_gated_ffn(rows, rule):
    _, weights = case(96, 300, density=0.3)
    op = gpu_ffn(ffn_to_gpu(RULES[rule](weights)))
    check(lambda x: op(x).y, rows, 96)
