"""The kernel benchmark: honest weights, honest bytes, and no speed of a wrong kernel."""

from __future__ import annotations

import pytest
import torch

from sparseinfer.bench import kernel
from sparseinfer.bench.kernel import KernelSettings, measure_kernels
from sparseinfer.errors import ConfigError, NumericalError
from sparseinfer.formats import WeightFormats
from sparseinfer.kernels.matrix import row_bytes
from sparseinfer.packed import pack

from .conftest import silent


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


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        (("gpt", None, None, 1, 1), "gpt"),
        ((None, ("int3",), None, 1, 1), "int3"),
        ((None, None, ("own",), 1, 1), "own"),
        ((None, None, (1.0,), 1, 1), "1.0"),
        ((None, None, None, 0, 1), "threads"),
        ((None, None, None, 1, 0), "--pairs"),
    ],
)
def test_refusals(settings, word):
    with pytest.raises(ConfigError, match=word):
        KernelSettings(*settings)
