"""Values of each layer: lines with markers, and fans of quantiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from sparseinfer.report.cells import Value
from sparseinfer.report.document import LegendEntry
from sparseinfer.report.evaluation import Distribution
from sparseinfer.report.svg import (
    Axis,
    Element,
    Plot,
    Scale,
    draw_marker,
    element,
    marker_sample,
    number_tick,
    percent_tick,
    plot,
    series_class,
    swatch,
)

T = TypeVar("T")

_HEIGHT = 220
_MARKER = 3.2
_BANDS = ((0, 10), (1, 9), (3, 7))
"""Pairs of quantiles (0: smallest, 1 to 9: deciles, 10: largest), the widest first."""
_MEDIAN = 5
FAN_LEGEND = (
    LegendEntry(swatch("band0"), "smallest to largest"),
    LegendEntry(swatch("band0", "band1"), "10th to 90th percentile"),
    LegendEntry(swatch("band0", "band1", "band2"), "30th to 70th percentile"),
    LegendEntry(marker_sample(0), "median"),
)


@dataclass(frozen=True)
class Line:
    """One value for each layer; None leaves a gap.

    Attributes:
        dashed: hollow markers on a dashed line: what was aimed at rather than measured.
        index: gives colour and marker; by default its place among the lines of the picture.
    """

    name: str
    values: tuple[Value, ...]
    dashed: bool = False
    index: int | None = None


def line_plot(title: str, y_name: str, lines: Sequence[Line], *, is_share: bool) -> str:
    """SVG text.

    Args:
        is_share: values are fractions, written as percentages.
    """
    numbers = [v.number for line in lines for v in line.values if v.number is not None]
    y = Axis(
        y_name,
        Scale.around(numbers, floor=0),
        percent_tick if is_share else number_tick,
    )
    found = plot(title, _layer_axis(len(lines[0].values)), y, height=_HEIGHT)
    for index, line in _indexed(lines):
        group = element(found.root, "g", class_=f"series {series_class(index)}")
        values = [value.number for value in line.values]
        for path in _segments(found, values):
            element(group, "path", d=path, class_="line dashed" if line.dashed else "line")
        for layer, value in enumerate(line.values):
            _draw_value(group, found, index, layer, value, line.name, hollow=line.dashed)
    return found.markup


def line_legend(lines: Sequence[Line]) -> tuple[LegendEntry, ...]:
    """One entry for each line."""
    return tuple(
        LegendEntry(
            marker_sample(index, hollow=line.dashed, line="line dashed" if line.dashed else "line"),
            line.name,
        )
        for index, line in _indexed(lines)
    )


def fan_plot(
    title: str, y_name: str, rows: Sequence[Distribution | None], *, is_share: bool
) -> str:
    """SVG text: the quantiles of each layer as bands, the median as a line.

    Args:
        rows: one for each layer; None leaves a gap.
        is_share: values are fractions, written as percentages.
    """
    quantiles = [_quantiles(row) for row in rows]
    numbers = [value for row in quantiles for value in row if value is not None]
    y = Axis(
        y_name,
        Scale.around(numbers, floor=0),
        percent_tick if is_share else number_tick,
    )
    found = plot(title, _layer_axis(len(rows)), y, height=_HEIGHT)
    group = element(found.root, "g", class_=f"series {series_class(0)}")
    for band, (low, high) in enumerate(_BANDS):
        pairs = [_pair(row[low], row[high]) for row in quantiles]
        for path in _areas(found, pairs):
            element(group, "path", d=path, class_=f"band{band}")
    medians = [row[_MEDIAN] for row in quantiles]
    for path in _segments(found, medians):
        element(group, "path", d=path, class_="line")
    for layer, median in enumerate(medians):
        if median is not None:
            element(
                group,
                "circle",
                cx=found.x(layer),
                cy=found.y(median),
                r=2,
                class_="mark",
                data_x=layer,
                data_y=median,
            )
    return found.markup


def _indexed(lines: Sequence[Line]) -> list[tuple[int, Line]]:
    return [(place if line.index is None else line.index, line) for place, line in enumerate(lines)]


def _layer_axis(layers: int) -> Axis:
    scale = Scale(-0.5, layers - 0.5)
    ticks = tuple(tick for tick in scale.ticks() if tick.is_integer() and tick >= 0)
    return Axis("layer", scale, number_tick, ticks or (0.0,))


def _draw_value(
    group: Element, found: Plot, index: int, layer: int, value: Value, name: str, *, hollow: bool
) -> None:
    if value.number is None:
        return
    one = element(group, "g", data_x=layer, data_y=value.number)
    element(one, "title", f"layer {layer}, {name}: {value.text}")
    x, y = found.x(layer), found.y(value.number)
    draw_marker(one, index, x, y, size=_MARKER, hollow=hollow)


def _quantiles(row: Distribution | None) -> tuple[float | None, ...]:
    return (None,) * 11 if row is None else (row.min, *row.deciles, row.max)


def _segments(found: Plot, values: Sequence[float | None]) -> list[str]:
    """Paths through neighbouring values; a missing one ends a path."""
    paths = []
    for run in _runs(values):
        points = [f"{found.x(layer):.1f} {found.y(value):.1f}" for layer, value in run]
        paths.append("M" + "L".join(points))
    return [path for path in paths if "L" in path]


def _pair(low: float | None, high: float | None) -> tuple[float, float] | None:
    return None if low is None or high is None else (low, high)


def _areas(found: Plot, pairs: Sequence[tuple[float, float] | None]) -> list[str]:
    """Outlines of bands between neighbouring pairs; a single layer's is half a layer wide."""
    outlines = []
    for run in _runs(pairs):
        if len(run) == 1:
            ((layer, pair),) = run
            run = [(layer - 0.25, pair), (layer + 0.25, pair)]
        above = [f"{found.x(layer):.1f} {found.y(high):.1f}" for layer, (_, high) in run]
        below = [f"{found.x(layer):.1f} {found.y(low):.1f}" for layer, (low, _) in run[::-1]]
        outlines.append("M" + "L".join(above + below) + "Z")
    return outlines


def _runs(values: Sequence[T | None]) -> list[list[tuple[float, T]]]:
    """(index, value) of neighbouring values that are not None, split where one is."""
    runs: list[list[tuple[float, T]]] = [[]]
    for index, value in enumerate(values):
        if value is None:
            runs.append([])
        else:
            runs[-1].append((index, value))
    return [run for run in runs if run]
