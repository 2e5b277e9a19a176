"""Numbers and names as readers see them."""

from __future__ import annotations

import pytest

from sparseinfer.report.cells import Style, Value, plain, visible


@pytest.mark.parametrize(
    ("style", "number", "text"),
    [
        (Style.PERCENT, 0.41374, "41.37%"),
        (Style.PERCENT, -0.05, "-5.00%"),
        (Style.RATIO, 1.14375, "1.1438"),
        (Style.QUANTITY, 39.38124, "39.38"),
        (Style.QUANTITY, 3082.4, "3082"),
        (Style.QUANTITY, 0.0812345, "0.08123"),
        (Style.QUANTITY, 0.0, "0"),
        (Style.QUANTITY, 1.5e-7, "1.5e-07"),
        (Style.QUANTITY, 1234567.0, "1.235e+06"),
        (Style.SPEED, 128.44, "128.4"),
        (Style.BYTES, 269_000_000, "269.00 MB"),
        (Style.BYTES, 13_476_831_232, "13.48 GB"),
        (Style.BYTES, 1500, "1.50 kB"),
        (Style.BYTES, 999, "999 bytes"),
        (Style.COUNT, 8192, "8,192"),
        (Style.EXACT, 0.1, "0.1"),
        (Style.EXACT, 3.0, "3"),
        (Style.EXACT, 3, "3"),
        (Style.PERCENT, None, "-"),
    ],
)
def test_numbers(style, number, text):
    assert Value(number, style).text == text


def test_a_cell_of_several_parts_is_one_line():
    cell = (Value(1.0, Style.RATIO), " to\n", Value(None, Style.RATIO))
    assert plain(cell) == "1.0000 to -"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("llama", "llama"),
        ("naïve 模型", "naïve 模型"),
        ("a\r\nb\tc", "a b c"),
        ("a\x00b\x1b[31m", "a\\u0000b\\u001b[31m"),
        ("a\u202eb\u200b", "a\\u202eb\\u200b"),
    ],
)
def test_names_show_what_they_hide(name, shown):
    assert visible(name) == shown
