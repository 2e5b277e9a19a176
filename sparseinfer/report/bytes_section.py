"""Bytes of a token by part of the model: predictor, gate, up, down, attention, head, other."""

from __future__ import annotations

from collections.abc import Sequence

from sparseinfer.report.bars import Bar, bar_legend, stacked_bars
from sparseinfer.report.cells import Cell, Style, Value, byte_count
from sparseinfer.report.document import Figure, Section, gallery, table
from sparseinfer.report.parts import Sparsity

_MEGABYTE = 1e6


def bytes_section(states: Sequence[tuple[str, Sparsity]]) -> Section | None:
    """A picture and a table, the dense model first; None where no part was counted.

    Args:
        states: name and sparsity of each, all of one model.
    """
    counted = [(name, one) for name, one in states if one.parts]
    if not counted:
        return None
    whole = counted[0][1]
    names = [part.part for part in whole.parts]
    columns = [("dense", whole.bytes_per_token_dense, [part.dense for part in whole.parts])]
    columns += [
        (name, one.bytes_per_token_read, [part.read for part in one.parts]) for name, one in counted
    ]
    # A part that nothing reads, such as the predictor of a model without one, is not shown.
    shown = [i for i in range(len(names)) if any(values[i] for _, _, values in columns)]
    parts = [names[i] for i in shown]
    bars = [
        Bar(name, byte_count(total), tuple(_bytes(values[i]) for i in shown))
        for name, total, values in columns
    ]
    title = "Bytes per token by part"
    figure = Figure(title, stacked_bars(title, "MB", _MEGABYTE, parts, bars), bar_legend(parts))
    rows: list[tuple[Cell, ...]] = [
        (names[i], *(_bytes(values[i]) for _, _, values in columns)) for i in shown
    ]
    rows.append(("all", *(byte_count(total) for _, total, _ in columns)))
    note = (
        "Weight bytes of one decode step, on average; predictor includes sketches, other is norms, "
        "biases and one row of the embedding. Keys and values come on top."
    )
    heads = ("part", *(name for name, _, _ in columns))
    return Section(title, (*gallery([figure]), table(title, heads, rows, note=note)))


def _bytes(number: float) -> Value:
    return Value(number, Style.BYTES)
