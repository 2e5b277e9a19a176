"""Threads, processes and lifetimes around the kernels."""

from __future__ import annotations

import gc
import multiprocessing
import threading

import pytest
import torch
from ffn_oracle import case
from matrices import matrix

from sparseinfer.kernels.gated_ffn.cpu import CpuGatedFfn
from sparseinfer.kernels.linear.cpu import CpuLinear
from sparseinfer.kernels.sparse_input_linear.cpu import CpuSparseInputLinear
from sparseinfer.kernels.threads import CpuPool

FORK = multiprocessing.get_context("fork")


def test_calls_from_many_python_threads(isa):
    pool = CpuPool(3)
    formats = ("fp32", "bf16", "int8", "int4")
    cases = [case(60 + 7 * i, 200 + 31 * i, format=formats[i], seed=i) for i in range(4)]
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


def _in_child(ops, x: torch.Tensor, expected: list[float], queue) -> None:
    answers = []
    for op in ops:
        try:
            op(x)
            answers.append("the parent's pool worked")
        except RuntimeError as error:
            answers.append(str(error))
    again = CpuGatedFfn(ops[0].weights, CpuPool(2))(x).y.tolist()
    queue.put([*answers, again == expected])


def test_a_forked_child_gets_an_error_and_can_start_anew():
    x, weights = case(70, 500)
    pool = CpuPool(2)
    op = CpuGatedFfn(weights, pool)
    others = (
        CpuLinear(matrix(9, 70, "int8"), None, pool),
        CpuSparseInputLinear(matrix(70, 9, "int4"), torch.zeros(70), None, pool),
    )
    expected = op(x).y.tolist()
    queue = FORK.Queue()
    child = FORK.Process(target=_in_child, args=((op, *others), x, expected, queue))
    child.start()
    *errors, equal = queue.get(timeout=60)
    child.join(60)
    assert len(errors) == 3
    for error in errors:
        assert "after fork(), make a new one" in error
    assert equal, "a new pool gave other values"
    assert child.exitcode == 0
    assert op(x).y.tolist() == expected


def test_pools_come_and_go():
    x, weights = case(30, 200, format="int4")
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
    for milliseconds in (0, 0.05, 0.1, 0.3, 1, 20):
        for _ in range(20 if milliseconds < 1 else 3):
            pause.wait(milliseconds / 1000)
            assert torch.equal(op(x).y, expected)


@pytest.mark.parametrize("format", ["fp32", "int4"])
def test_handles_keep_weights_and_pool_alive(format):
    x, weights = case(128, 1024, format=format, bias=True)
    op = CpuGatedFfn(weights, CpuPool(2))
    expected = op(x).y
    weight, bias = matrix(512, 128, format), torch.randn(512)
    head = CpuLinear(weight, bias, CpuPool(2))
    head_expected = head(x)
    native, pool, isa, head_native, head_pool = (
        op.native,
        op._pool,
        op.isa,
        head.native,
        head._pool,
    )
    del op, weights, head, weight, bias
    gc.collect()
    # Memory freed too early would be handed out again and overwritten here.
    clutter = [torch.full((1024, 128), torch.nan) for _ in range(50)]
    y, counts = torch.zeros(1, 128), torch.zeros(1, 3, dtype=torch.int64)
    native.call(pool, isa, x.data_ptr(), 0, y.data_ptr(), counts.data_ptr(), 1)
    assert torch.equal(y, expected)
    y = torch.zeros(1, 512)
    head_native.call(head_pool, isa, x.data_ptr(), y.data_ptr(), 1)
    assert torch.equal(y, head_expected)
    assert len(clutter) == 50
