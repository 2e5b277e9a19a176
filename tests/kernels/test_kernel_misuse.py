"""Wrong weights, inputs, names and thread counts are refused with a message that says which."""

from __future__ import annotations

import builtins
import dataclasses

import pytest
import torch
from ffn_oracle import case

from sparseinfer.kernels import isa as isa_module
from sparseinfer.kernels import threads as threads_module
from sparseinfer.kernels.gated_ffn.cpu import CpuGatedFfn
from sparseinfer.kernels.isa import choose_isa, isa_available
from sparseinfer.kernels.linear.cpu import CpuLinear
from sparseinfer.kernels.threads import CpuPool, physical_cores


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"phi": "gelu"}, "phi must be one of silu, relu, relu2"),
        ({"psi": "silu"}, "psi must be one of id, relu"),
        ({"gate": torch.ones(6)}, "gate must be"),
        ({"gate": torch.ones(0, 4)}, "not empty"),
        ({"gate": torch.ones(6, 4).half()}, "float32 or bfloat16"),
        ({"up": torch.ones(5, 4)}, "up must be"),
        ({"up": torch.ones(6, 4).bfloat16()}, "up must be"),
        ({"down": torch.ones(4, 6)}, "down must be"),
        ({"down": torch.ones(4, 6).T}, "down must be contiguous"),
        ({"threshold": torch.ones(1)}, "threshold must be"),
        ({"threshold": torch.ones(6).double()}, "threshold must be"),
        ({"threshold": torch.full((6,), torch.nan)}, "threshold has NaN"),
        ({"gate_bias": torch.ones(4)}, "gate_bias must be"),
        ({"up_bias": torch.ones(12)[::2]}, "up_bias must be contiguous"),
        ({"down_bias": torch.ones(6)}, "down_bias must be"),
        ({"down_bias": torch.ones(4, device="meta")}, "down_bias is on meta"),
    ],
)
def test_wrong_weights(changes, message):
    _, weights = case(4, 6, dtype=torch.float32)
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(weights, **changes)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.ones(4), "x must be"),
        (torch.ones(1, 5), "x must be"),
        (torch.ones(1, 4).bfloat16(), "x must be torch.float32"),
        (torch.ones(3, 8)[:, ::2], "x must be contiguous"),
        (torch.ones(1, 4, device="meta"), "x is on meta"),
    ],
)
def test_wrong_input(ffn, x, message):
    _, weights = case(4, 6)
    with pytest.raises(ValueError, match=message):
        ffn(weights, x)


def test_no_rows(ffn, linear_op):
    _, weights = case(4, 6)
    output = ffn(weights, torch.ones(0, 4))
    assert output.y.shape == (0, 4)
    assert output.counts.shape == (0, 2)
    assert linear_op(torch.ones(3, 4), None, torch.ones(0, 4)).shape == (0, 3)


def test_weights_that_require_grad(pool):
    x, weights = case(4, 6, dtype=torch.float32)
    trained = dataclasses.replace(weights, gate=weights.gate.requires_grad_())
    assert not CpuGatedFfn(trained, pool)(x).y.requires_grad
    assert not CpuLinear(torch.nn.Parameter(torch.ones(3, 4)), None, pool)(x).requires_grad


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
        isa_module.native().Linear(weights.gate, None, pool.native, "sse9")
    assert x.shape == (1, 4)


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True])
def test_wrong_thread_counts(threads):
    with pytest.raises(ValueError, match="at least 1"):
        CpuPool(threads)


def test_default_threads():
    assert CpuPool().threads == physical_cores() >= 1
    assert repr(CpuPool(3)) == "CpuPool(threads=3)"


def test_hyperthreads_count_once(monkeypatch, tmp_path):
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
    real = builtins.__import__

    def without(name, globals=None, locals=None, fromlist=(), level=0):
        if name == "sparseinfer.kernels" and "_native" in (fromlist or ()):
            raise ImportError("cannot import name '_native'")
        return real(name, globals, locals, fromlist, level)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"not built: run `pip install -e \.`"):
        isa_available()
