"""The bits depend on the input alone; and what happens around threads and processes."""

from __future__ import annotations

import gc
import multiprocessing
import threading

import pytest
import torch
from ffn_oracle import BF16, FP32, case

from sparseinfer.kernels.gated_ffn.cpu import CpuGatedFfn
from sparseinfer.kernels.linear.cpu import CpuLinear
from sparseinfer.kernels.threads import CpuPool

FORK = multiprocessing.get_context("fork")


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("density", [0.1, 1])
def test_ffn_bits_ignore_threads_batch_and_run(isa, dtype, density):
    x, weights = case(201, 777, dtype=dtype, density=density, rows=21, bias=True)
    expected = CpuGatedFfn(weights, CpuPool(1), isa)(x)
    for threads in (1, 2, 3, 5):
        op = CpuGatedFfn(weights, CpuPool(threads), isa)
        for _ in range(3):
            output = op(x)
            assert torch.equal(output.y, expected.y)
            assert torch.equal(output.counts, expected.counts)
        for rows in (1, 2, 7, 16):
            part = op(x[:rows])
            assert torch.equal(part.y, expected.y[:rows])
            assert torch.equal(part.counts, expected.counts[:rows])
        assert torch.equal(op(x[20:]).y, expected.y[20:])


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize(("inputs", "outputs"), [(130, 1000), (577, 61)])
def test_linear_bits_ignore_threads_batch_and_run(isa, dtype, inputs, outputs):
    weight = torch.randn(outputs, inputs).to(dtype)
    bias, x = torch.randn(outputs), torch.randn(9, inputs)
    expected = CpuLinear(weight, bias, CpuPool(1), isa)(x)
    for threads in (1, 2, 3, 5):
        op = CpuLinear(weight, bias, CpuPool(threads), isa)
        for rows in (1, 2, 9):
            assert torch.equal(op(x[:rows]), expected[:rows])
        assert torch.equal(op(x[8:]), expected[8:])


def test_calls_from_many_python_threads(isa):
    pool = CpuPool(3)
    cases = [case(60 + 7 * i, 200 + 31 * i, seed=i) for i in range(4)]
    ops = [CpuGatedFfn(weights, pool, isa) for _, weights in cases]
    expected = [op(x).y for op, (x, _) in zip(ops, cases, strict=True)]
    wrong: list[int] = []

    def worker(offset: int) -> None:
        for turn in range(150):
            i = (turn + offset) % 4
            if not torch.equal(ops[i](cases[i][0]).y, expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=worker, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def _in_child(op: CpuGatedFfn, x: torch.Tensor, expected: list[float], queue) -> None:
    try:
        op(x)
        queue.put("the parent's pool worked")
    except RuntimeError as error:
        op = CpuGatedFfn(op.weights, CpuPool(2))
        queue.put(str(error) if op(x).y.tolist() == expected else "a new pool gave other values")


def test_a_forked_child_gets_an_error_and_can_start_anew():
    x, weights = case(70, 500)
    op = CpuGatedFfn(weights, CpuPool(2))
    expected = op(x).y.tolist()
    queue = FORK.Queue()
    child = FORK.Process(target=_in_child, args=(op, x, expected, queue))
    child.start()
    answer = queue.get(timeout=60)
    child.join(60)
    assert "after fork(), make a new one" in answer
    assert child.exitcode == 0
    assert op(x).y.tolist() == expected


def test_pools_come_and_go():
    x, weights = case(30, 200)
    expected = CpuGatedFfn(weights, CpuPool(1))(x).y
    before = threading.active_count()
    for threads in range(1, 40):
        assert torch.equal(CpuGatedFfn(weights, CpuPool(1 + threads % 5))(x).y, expected)
    assert threading.active_count() == before


def test_a_sleeping_pool_wakes():
    x, weights = case(64, 600)
    op = CpuGatedFfn(weights, CpuPool(3))
    expected = op(x).y
    pause = threading.Event()
    for milliseconds in (0, 0.05, 0.1, 1, 20):
        for _ in range(20 if milliseconds < 1 else 3):
            pause.wait(milliseconds / 1000)
            assert torch.equal(op(x).y, expected)


def test_handles_keep_weights_and_pool_alive():
    x, weights = case(128, 1024, dtype=FP32, bias=True)
    op = CpuGatedFfn(weights, CpuPool(2))
    expected = op(x).y
    matrix, bias = torch.randn(512, 128), torch.randn(512)
    head = CpuLinear(matrix, bias, CpuPool(2))
    head_expected = head(x)
    native, head_native = op._native, head._native
    del op, weights, head, matrix, bias
    gc.collect()
    # Memory freed too early would be handed out again and overwritten here.
    clutter = [torch.full((1024, 128), torch.nan) for _ in range(50)]
    y, counts = torch.zeros(1, 128), torch.zeros(1, 2, dtype=torch.int64)
    native.call(x.data_ptr(), y.data_ptr(), counts.data_ptr(), 1)
    assert torch.equal(y, expected)
    y = torch.zeros(1, 512)
    head_native.call(x.data_ptr(), y.data_ptr(), 1)
    assert torch.equal(y, head_expected)
    assert len(clutter) == 50
