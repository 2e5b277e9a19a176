"""The kernel benchmark: honest weights, honest bytes, and no speed of a wrong kernel."""

from __future__ import annotations

import pytest
import torch

from sparseinfer.bench import kernel, shapes
from sparseinfer.bench.kernel import KernelSettings, measure_kernels
from sparseinfer.errors import ConfigError, NumericalError
from sparseinfer.formats import WeightFormats
from sparseinfer.kernels.matrix import row_bytes
from sparseinfer.packed import pack

from .conftest import silent
from .test_random_model import TINY


@pytest.fixture
def small(make_checkpoint, monkeypatch):
    """The benchmark on a tiny FFN, and few copies of it."""
    checkpoint = make_checkpoint()
    monkeypatch.setattr(kernel, "random_model", lambda *_, **__: checkpoint.path)
    monkeypatch.setattr(kernel, "_ROTATED_BYTES", 200_000)
    monkeypatch.setattr(kernel, "read_bandwidth", lambda _pool, _bytes: 10.0)
    return checkpoint


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
def test_bytes_are_those_of_the_rows_read(small, weights):
    settings = KernelSettings("llama2-7b", (weights,), (0.0, 0.5), 1, 3)
    dense, sparse = measure_kernels(settings, progress=silent).rows
    row = row_bytes(weights, 64)
    assert dense.active_bytes == 3 * 128 * row
    assert sparse.active_bytes == 2 * 128 * row
    for one in (dense, sparse):
        assert one.gb_s.median == pytest.approx(one.active_bytes / one.microseconds.median / 1e3)
        assert one.bandwidth_fraction.median == pytest.approx(one.gb_s.median / 10)
        assert len(one.gb_s.values) == 3


@pytest.mark.parametrize("weights", ["bf16", "int4"])
def test_copies_lie_elsewhere_and_hold_the_same(small, weights):
    layer = pack(small, WeightFormats.of(weights)).layers[0].ffn
    threshold = torch.zeros(128)
    copies = [kernel._copy(layer, threshold) for _ in range(2)]
    for name in ("gate", "up", "down"):
        matrices = [getattr(one, name) for one in (layer, *copies)]
        assert len({matrix.data.data_ptr() for matrix in matrices}) == 3
        assert all(torch.equal(one.float(), matrices[0].float()) for one in matrices)
        assert {one.row_stride_bytes for one in matrices} == {matrices[0].row_stride_bytes}
    assert copies[0].threshold is threshold


def test_no_speed_is_given_of_a_kernel_that_is_wrong(small, monkeypatch):
    def wrong(x, weights):
        from sparseinfer.kernels.gated_ffn.reference import gated_ffn

        right = gated_ffn(x, weights)
        return right._replace(y=1.1 * right.y)

    monkeypatch.setattr(kernel, "gated_ffn", wrong)
    with pytest.raises(NumericalError, match="off its reference"):
        measure_kernels(KernelSettings(None, ("int8",), None, 1, 1), progress=silent)


@pytest.mark.usefixtures("cache")
def test_planted_gates_are_read_where_a_predictor_lets_them_through(monkeypatch):
    monkeypatch.setitem(shapes.SHAPES, "tiny", TINY)
    monkeypatch.setattr(kernel, "_PLANTED_BYTES", 200_000)
    monkeypatch.setattr(kernel, "read_bandwidth", lambda _pool, _bytes: 10.0)
    settings = KernelSettings("tiny", ("bf16",), None, 1, 2, ("neurons", "lowrank", "sign"))
    dense, gate_first, lowrank, sign = measure_kernels(settings, progress=silent).rows
    row = row_bytes("bf16", 64)
    assert (dense.rule, dense.active_bytes) == (None, 3 * 160 * row)
    assert 160 * row < gate_first.active_bytes < 0.6 * dense.active_bytes
    for one in (lowrank, sign):
        assert one.active_bytes < gate_first.active_bytes + one.chooser_bytes
        assert one.predicted == pytest.approx(dense.active_bytes / one.active_bytes)
        assert one.quality["recall"] > 0.9
        assert len(one.over_dense.values) == 2
    assert lowrank.active_bytes - lowrank.chooser_bytes < sign.active_bytes - sign.chooser_bytes
    assert dense.over_dense is None
    assert gate_first.chooser_microseconds is None


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        (("gpt", None, None, 1, 1), "gpt"),
        ((None, ("int3",), None, 1, 1), "int3"),
        ((None, None, ("own",), 1, 1), "own"),
        ((None, None, (1.0,), 1, 1), "1.0"),
        ((None, None, None, 0, 1), "threads"),
        ((None, None, None, 1, 0), "--pairs"),
        ((None, None, None, 1, 1, ("sketch",)), "--rule 'sketch'"),
        ((None, None, (0.5, 0.9), 1, 1, ("sign",)), "--sparsity: planted"),
    ],
)
def test_refusals(settings, word):
    with pytest.raises(ConfigError, match=word):
        KernelSettings(*settings)
