"""Rows of every format: their layout, their values, and what is no matrix."""

from __future__ import annotations

import pytest
import torch
from matrices import bundle, matrix, quantised

from sparseinfer.kernels.matrix import GROUP, Matrix, pack_int4, row_bytes, scales_per_row

COLUMNS = [1, 31, 32, 33, 64, 65, 100, 128, 129, 192, 200, 256, 576]


@pytest.mark.parametrize("columns", COLUMNS)
def test_bytes_of_a_row(columns):
    groups = scales_per_row(columns)
    assert groups % 2 == 0
    assert groups * GROUP >= columns > (groups - 2) * GROUP
    assert row_bytes("fp32", columns) == 4 * columns
    assert row_bytes("bf16", columns) == 2 * columns
    assert row_bytes("int8", columns) == 34 * groups
    assert row_bytes("int4", columns) == 18 * groups


def test_bits_per_weight_where_nothing_is_padded():
    assert 8 * row_bytes("int8", 4096) / 4096 == 8.5
    assert 8 * row_bytes("int4", 4096) / 4096 == 4.5


@pytest.mark.parametrize("columns", COLUMNS)
def test_values_byte_by_byte(columns):
    """The layout of the module's docstring, read here one weight at a time."""
    for format in ("int8", "int4"):
        weight = matrix(3, columns, format, seed=columns)
        groups = scales_per_row(columns)
        scales = weight.data[:, : 2 * groups].contiguous().view(torch.float16).float()
        codes = weight.data[:, 2 * groups :]
        for row in range(3):
            for k in range(columns):
                if format == "int8":
                    code = int(codes[row, k].view(torch.int8))
                else:
                    block, inside = divmod(k, 128)
                    half = 64 if (block + 1) * 128 <= groups * GROUP else 32
                    byte = int(codes[row, block * 64 + inside % half])
                    code = (byte >> 4 if inside >= half else byte & 15) - 8
                expected = scales[row, k // GROUP] * code
                assert weight.float(row, row + 1)[0, k] == expected, (format, row, k)


@pytest.mark.parametrize("width", [64, 128, 192, 256, 640])
def test_packing_int4_keeps_every_code(width):
    random = torch.Generator().manual_seed(width)
    codes = torch.randint(0, 16, (5, width), generator=random, dtype=torch.uint8)
    packed = pack_int4(codes)
    assert packed.shape == (5, width // 2)
    ones = torch.ones(5, width // GROUP, dtype=torch.float16).view(torch.uint8)
    stored = Matrix("int4", torch.cat((ones, packed), 1), width)
    assert torch.equal(stored.float(), codes.float() - 8)


def test_rows_of_a_bundle(format):
    first, second = matrix(6, 100, format, 1), matrix(6, 100, format, 2)
    for one, other in zip((first, second), bundle(first, second), strict=True):
        assert torch.equal(one.float(), other.float())
        assert torch.equal(one.float(2, 5), other.float()[2:5])
        assert (other.rows, other.columns, other.shape) == (6, 100, (6, 100))
        assert other.row_bytes == one.row_bytes == one.row_stride_bytes
        assert other.row_stride_bytes == 2 * one.row_stride_bytes
    single = Matrix(format, first.data[:1], 100)
    assert single.row_stride_bytes == single.row_bytes


def test_plain_weights_are_views(format):
    if quantised(format):
        return
    weight = matrix(4, 9, format).data
    view = Matrix.of(weight)
    assert view.format == format
    assert view.data.data_ptr() == weight.data_ptr()
    assert torch.equal(view.float(), weight.float())


BYTES = torch.zeros(3, 68, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("format", "data", "columns", "message"),
    [
        ("int3", BYTES, 64, "format must be one of fp32, bf16, fp16, int8, int4, not 'int3'"),
        ("fp32", torch.ones(4), 4, r"\[N, K\] and not empty"),
        ("fp32", torch.ones(0, 4), 4, "not empty"),
        ("fp32", torch.ones(4, 0), 0, "not empty"),
        ("fp32", torch.ones(4, 4).bfloat16(), 4, "fp32 rows are torch.float32"),
        ("bf16", torch.ones(4, 4), 4, "bf16 rows are torch.bfloat16"),
        ("int8", torch.zeros(3, 68, dtype=torch.int8), 64, "int8 rows are torch.uint8"),
        ("fp32", torch.ones(4, 4), 5, "rows of 5 weights have 5 elements, not 4"),
        ("int8", BYTES, 65, "rows of 65 weights have 136 elements, not 68"),
        ("int4", BYTES, 64, "rows of 64 weights have 36 elements, not 68"),
        ("fp32", torch.ones(4, 8)[:, ::2], 4, "adjacent"),
        ("fp32", torch.ones(4, 4).T[:, :4], 4, "adjacent"),
        ("fp32", torch.ones(4).expand(3, 4), 4, "must not overlap"),
    ],
)
def test_what_is_no_matrix(format, data, columns, message):
    with pytest.raises(ValueError, match=message):
        Matrix(format, data, columns)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.ones(4, 4).double(), "float32, bfloat16 or float16"),
        (torch.ones(4), r"\[N, K\]"),
        (torch.ones(4, 8)[:, ::2], "adjacent"),
    ],
)
def test_what_is_no_plain_weight(weight, message):
    with pytest.raises(ValueError, match=message):
        Matrix.of(weight)
