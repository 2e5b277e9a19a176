"""Curves of several runs over the tokens they were trained on, in one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparseinfer.report.document import LegendEntry
from sparseinfer.report.svg import (
    Axis,
    Element,
    Plot,
    Scale,
    count_tick,
    draw_marker,
    element,
    marker_sample,
    number_tick,
    percent_tick,
    plot,
    series_class,
)

_HEIGHT = 240
_MARKS = 8
"""Markers of a curve, which tell curves apart without colour; more would hide them."""
_FAR_APART = 100
"""Values that differ by this factor are drawn on a logarithmic scale even where that leaves out
zeros."""

Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Curve:
    """Values over tokens; None leaves a gap.

    Attributes:
        index: gives colour and marker, the same in every picture of a report.
    """

    index: int
    name: str
    tokens: tuple[int, ...]
    values: tuple[float | None, ...]


def curve_plot(title: str, y_name: str, curves: Sequence[Curve], *, is_share: bool = False) -> str:
    """SVG text.

    Args:
        is_share: values are fractions, written as percentages.
    """
    drawn = [value for curve in curves for value in curve.values if value is not None]
    log = not is_share and _suits_log(drawn)
    shown = [value for value in drawn if value > 0] if log else drawn
    y = Axis(
        y_name,
        Scale.around(shown, floor=None if log else 0, log=log),
        percent_tick if is_share else number_tick,
    )
    found = plot(title, token_axis([curve.tokens for curve in curves]), y, height=_HEIGHT)
    for curve in curves:
        group = element(found.root, "g", class_=f"series {series_class(curve.index)}")
        runs = _runs(curve, above=0.0 if log else None)
        for run in runs:
            _draw(group, found, run)
        _mark(group, found, curve, [point for run in runs for point in run])
    return found.markup


def curve_legend(curves: Sequence[Curve]) -> tuple[LegendEntry, ...]:
    """One entry for each curve."""
    return tuple(LegendEntry(marker_sample(curve.index), curve.name) for curve in curves)


def token_axis(tokens: Sequence[Sequence[int]]) -> Axis:
    """From no token to the last of any run."""
    return Axis("tokens trained on", Scale(0, max(one[-1] for one in tokens)), count_tick)


def _suits_log(values: Sequence[float]) -> bool:
    positive = [value for value in values if value > 0]
    if not positive or min(values) < 0:
        return False
    return len(positive) == len(values) or max(positive) >= _FAR_APART * min(positive)


def _runs(curve: Curve, *, above: float | None) -> list[Points]:
    """Neighbouring points that can be drawn."""
    runs: list[list[tuple[float, float]]] = [[]]
    for tokens, value in zip(curve.tokens, curve.values, strict=True):
        if value is None or (above is not None and value <= above):
            runs.append([])
        else:
            runs[-1].append((tokens, value))
    return [tuple(run) for run in runs if run]


def _draw(group: Element, found: Plot, run: Points) -> None:
    path = "L".join(f"{found.x(x):.1f} {found.y(y):.1f}" for x, y in run)
    if len(run) > 1:
        element(group, "path", d=f"M{path}", class_="line")


def _mark(group: Element, found: Plot, curve: Curve, points: Sequence[tuple[float, float]]) -> None:
    """Markers at a few points, the last one included, with their values."""
    count = len(points)
    # Those of the next curve stand a little further on, or curves that lie together would look as
    # one.
    shift = (curve.index % 4) / 4
    chosen = {round((i + 1 - shift) * count / _MARKS) - 1 for i in range(_MARKS)} | {count - 1}
    for index in sorted(i for i in chosen if 0 <= i < count):
        tokens, value = points[index]
        one = element(group, "g", data_x=tokens, data_y=value)
        said = f"{curve.name}: {value:.4g} after {count_tick(tokens)} tokens"
        element(one, "title", said)
        draw_marker(one, curve.index, found.x(tokens), found.y(value), size=3.2)
