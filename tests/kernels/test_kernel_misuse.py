"""Wrong weights, inputs, names and thread counts are refused with a message that says which."""

from __future__ import annotations

import dataclasses
import sys

import pytest
import torch
from ffn_oracle import case
from matrices import matrix

from sparseinfer.kernels import isa as isa_module
from sparseinfer.kernels import threads as threads_module
from sparseinfer.kernels.gated_ffn.cpu import CpuGatedFfn
from sparseinfer.kernels.isa import choose_isa, isa_available
from sparseinfer.kernels.linear.cpu import CpuLinear
from sparseinfer.kernels.matrix import Matrix
from sparseinfer.kernels.threads import CpuPool, physical_cores


def of(*shape: int) -> Matrix:
    return Matrix.of(torch.ones(*shape))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"phi": "gelu"}, "phi must be one of silu, relu, relu2"),
        ({"psi": "silu"}, "psi must be one of id, relu"),
        ({"up": of(5, 4)}, r"up must be \[6, 4\]"),
        ({"up": Matrix.of(torch.ones(6, 4).bfloat16())}, "up is bf16, but gate is fp32"),
        ({"up": matrix(6, 4, "int8")}, "up is int8, but gate is fp32"),
        ({"up": Matrix.of(torch.ones(6, 4, device="meta"))}, "up is on meta"),
        ({"down": of(4, 6)}, r"down must be \[6, 4\]"),
        ({"threshold": torch.ones(1)}, "threshold must be"),
        ({"threshold": torch.ones(6).double()}, "threshold must be"),
        ({"threshold": torch.ones(12)[::2]}, "threshold must be contiguous"),
        ({"threshold": torch.full((6,), torch.nan)}, "threshold has NaN"),
        ({"threshold": None}, "threshold is missing"),
        ({"gate_bias": torch.ones(4)}, "gate_bias must be"),
        ({"up_bias": torch.ones(12)[::2]}, "up_bias must be contiguous"),
        ({"down_bias": torch.ones(6)}, "down_bias must be"),
        ({"down_bias": torch.ones(4).bfloat16()}, r"down_bias must be torch\.float32"),
        ({"down_bias": torch.ones(4, device="meta")}, "down_bias is on meta"),
    ],
)
def test_wrong_weights(changes, message):
    _, weights = case(4, 6, format="fp32")
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(weights, **changes)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.ones(4), "x must be"),
        (torch.ones(1, 5), "x must be"),
        (torch.ones(1, 4).bfloat16(), r"x must be torch\.float32"),
        (torch.ones(3, 8)[:, ::2], "x must be contiguous"),
        (torch.ones(1, 4, device="meta"), "x is on meta"),
    ],
)
def test_wrong_input(ffn, format, x, message):
    _, weights = case(4, 6, format=format)
    with pytest.raises(ValueError, match=message):
        ffn(weights, x)


def test_no_rows(ffn, linear_op, format):
    _, weights = case(4, 6, format=format)
    output = ffn(weights, torch.ones(0, 4))
    assert output.y.shape == (0, 4)
    assert output.counts.shape == (0, 2)
    assert linear_op(matrix(3, 4, format), None, torch.ones(0, 4)).shape == (0, 3)


def test_weights_that_require_grad(pool):
    x, weights = case(4, 6, format="fp32")
    trained = Matrix.of(weights.gate.data.clone().requires_grad_())
    assert not CpuGatedFfn(dataclasses.replace(weights, gate=trained), pool)(x).y.requires_grad
    assert not CpuLinear(trained, None, pool)(x).requires_grad


def test_isa_names(pool):
    assert isa_available()[0] == "portable"
    assert choose_isa() == isa_available()[-1]
    x, weights = case(4, 6)
    assert CpuGatedFfn(weights, pool).isa == choose_isa()
    for call in (
        lambda: choose_isa("sse9"),
        lambda: CpuGatedFfn(weights, pool, "sse9"),
        lambda: CpuLinear(weights.gate, None, pool, "sse9"),
    ):
        with pytest.raises(ValueError, match="choose one of portable"):
            call()
    with pytest.raises(ValueError, match="sse9"):
        CpuLinear(weights.gate, None, pool).native.call(pool.native, "sse9", x.data_ptr(), 0, 1)


def test_the_compiled_module_checks_what_could_read_out_of_bounds(pool):
    native = isa_module.native()
    rows = torch.ones(6, 4)
    for data, format, columns in ((rows, 0, 5), (rows, 1, 4), (rows, 9, 4), (rows[:, ::2], 0, 2)):
        with pytest.raises(ValueError, match=r"fit the format|format out of range"):
            native.Matrix(data, format, columns)
    good = native.Matrix(rows, 0, 4)
    with pytest.raises(ValueError, match="bias must have 6 elements"):
        native.Linear(good, torch.ones(5))
    with pytest.raises(ValueError, match="bias must have 4 elements"):
        native.SparseInputLinear(good, torch.ones(6), torch.ones(6))
    for by_input, bias, threshold in ((False, 6, 4), (True, 4, 6)):
        native.Projection(good, torch.ones(bias), torch.ones(threshold), by_input)
        with pytest.raises(ValueError, match=f"bias must have {bias} elements"):
            native.Projection(good, torch.ones(threshold), None, by_input)
        with pytest.raises(ValueError, match=f"threshold must have {threshold} elements"):
            native.Projection(good, None, torch.ones(bias), by_input)


def test_the_compiled_ffn_checks_what_could_read_out_of_bounds(pool):
    native = isa_module.native()
    good, turned = native.Matrix(torch.ones(6, 4), 0, 4), native.Matrix(torch.ones(4, 6), 0, 6)

    def ffn(gate=good, up=good, threshold=6, **changes):
        vectors = dict.fromkeys(
            ("gate_bias", "up_bias", "down_bias", "gate_input", "up_input", "down_input")
        )
        choices = {
            "phi": 0,
            "psi": 0,
            "gate_by_input": False,
            "up_by_input": False,
            "top_k": 0,
            "chooser": None,
        }
        arguments = vectors | choices | changes
        return native.GatedFfn(gate, up, good, torch.ones(threshold), **arguments)

    assert ffn(gate=turned, up=turned, gate_by_input=True, up_by_input=True)
    short = native.Matrix(torch.ones(5, 4), 0, 4)
    for changes in ({"up": short}, {"gate": turned}, {"up_by_input": True}):
        with pytest.raises(ValueError, match="differ in shape or format"):
            ffn(**changes)
    with pytest.raises(ValueError, match="threshold must have 6 elements"):
        ffn(threshold=5)
    for name, size in (("gate_input", 4), ("up_input", 4), ("down_input", 6)):
        with pytest.raises(ValueError, match=f"{name} must have {size} elements"):
            ffn(**{name: torch.ones(10 - size)})
    for changes in ({"phi": 3}, {"psi": -1}, {"top_k": -1}):
        with pytest.raises(ValueError, match="phi, psi or top_k out of range"):
            ffn(**changes)
    x = torch.ones(1, 4)
    for changes in ({"top_k": 2}, {"up_input": torch.ones(4)}):
        with pytest.raises(ValueError, match="in a decode step only"):
            ffn(**changes).call(pool.native, "portable", x.data_ptr(), 0, x.data_ptr(), 0, 1)
    with pytest.raises(ValueError, match="rows, count or k out of range"):
        native.keep_largest(x.data_ptr(), 1, 4, -1, pool.native)


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True])
def test_wrong_thread_counts(threads):
    with pytest.raises(ValueError, match="at least 1"):
        CpuPool(threads)


def test_default_threads():
    assert CpuPool().threads == physical_cores() >= 1
    assert repr(CpuPool(3)) == "CpuPool(threads=3)"


def test_hyperthreads_count_once(monkeypatch, tmp_path):
    monkeypatch.setattr(threads_module, "cpu_quota", lambda: None)
    for cpu, core in enumerate((0, 1, 0, 1)):
        topology = tmp_path / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        (topology / "physical_package_id").write_text("0\n")
        (topology / "core_id").write_text(f"{core}\n")
    monkeypatch.setattr(threads_module, "_TOPOLOGY", tmp_path)
    monkeypatch.setattr(threads_module.os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert physical_cores() == 2
    monkeypatch.setattr(threads_module.os, "sched_getaffinity", lambda _: {1, 3})
    assert physical_cores() == 1
    monkeypatch.setattr(threads_module.os, "sched_getaffinity", lambda _: {0, 9})
    assert physical_cores() == 2


def test_missing_native_module_says_how_to_build(monkeypatch):
    monkeypatch.setitem(sys.modules, "sparseinfer.kernels._native", None)
    with pytest.raises(ImportError, match=r"not built.*install sparseinfer again"):
        isa_available()
