"""Heatmaps of firing rates: one row for each layer, and neurons or time from left to right."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import groupby

from sparseinfer.report.document import LegendEntry
from sparseinfer.report.svg import Axis, Scale, element, number_tick, percent_tick, plot, swatch

FIRING = (0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75)
"""Rates at which the colour changes: uneven, because most neurons of sparse models fire rarely."""
DENSITY = (0.02, 0.05, 0.08, 0.11, 0.15, 0.2, 0.25, 0.35, 0.5)
"""The same for means over all neurons of a layer, which differ less."""
_MOST_HEIGHT, _MOST_ROW = 260.0, 14.0
_AXES = 66
_SEAM = 0.4
"""Boxes reach under the next ones, or screens would show lines between them."""


def heatmap(
    title: str,
    rows: Sequence[Sequence[float | None]],
    *,
    x: Axis | None = None,
    bounds: Sequence[float] = FIRING,
) -> str:
    """SVG text.

    Args:
        rows: firing rates in [0, 1], one list of equal length for each layer; None is left blank.
        x: what the lists go along, in equal steps; by default neurons, sorted by rate.
        bounds: nine rates at which the colour changes.
    """
    x = x or Axis("neurons, most active first", Scale(0, 1), percent_tick, (0, 0.25, 0.5, 0.75, 1))
    count, bins = len(rows), len(rows[0])
    row_height = min(_MOST_ROW, _MOST_HEIGHT / count)
    layers = Scale(count - 0.5, -0.5)
    ticks = tuple(t for t in Scale(-0.5, count - 0.5).ticks() if t.is_integer() and t >= 0)
    found = plot(
        title,
        x,
        Axis("layer", layers, number_tick, ticks or (0.0,)),
        height=_AXES + row_height * count,
        grid=False,
    )
    edge = Scale(0, 1, found.x.start, found.x.end)
    for layer, rates in enumerate(rows):
        group = element(found.root, "g", class_="heat", data_layer=layer)
        element(group, "title", f"layer {layer}")
        start = 0
        levels = (None if rate is None else bisect_right(bounds, rate) for rate in rates)
        for level, run in groupby(levels):
            length = len(list(run))
            left, right = (edge(begin / bins) for begin in (start, start + length))
            start += length
            if level is None:
                continue
            element(
                group,
                "rect",
                x=left,
                y=found.y(layer - 0.5),
                width=right - left + _SEAM,
                height=row_height + _SEAM,
                class_=f"heat{level}",
            )
    return found.markup


def heatmap_legend(bounds: Sequence[float] = FIRING) -> tuple[LegendEntry, ...]:
    """Colours and the firing rates they stand for."""
    names = [f"under {percent_tick(bounds[0])}"]
    names += [f"from {percent_tick(bound)}" for bound in bounds]
    return tuple(LegendEntry(swatch(f"heat{i}"), name) for i, name in enumerate(names))
