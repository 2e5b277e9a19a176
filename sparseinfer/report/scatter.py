"""Quality against bytes: points of several methods, with intervals and labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sparseinfer.report.document import LegendEntry
from sparseinfer.report.svg import (
    CHARACTER,
    LINE,
    WIDTH,
    Axis,
    Element,
    Plot,
    draw_marker,
    element,
    marker_sample,
    plot,
    series_class,
)

_LABEL_DISTANCE = 8
_MARKER_BOX = 5
_BEFORE = {"start": 0.0, "middle": 0.5, "end": 1.0}
"""Part of a text that is left of where it is anchored."""
_GAP = 3
"""Between labels side by side."""


@dataclass(frozen=True)
class Point:
    """One measurement, with an interval (`low`, `high`) or an error to both sides.

    Attributes:
        labels: what to write beside it, the most telling first; what finds no room is left out.
        title: shown when pointed at.
    """

    x: float
    y: float
    labels: tuple[str, ...]
    title: str
    low: float | None = None
    high: float | None = None
    error: float | None = None

    @property
    def span(self) -> tuple[float, float] | None:
        """The ends of the whisker."""
        if self.low is not None and self.high is not None:
            return (self.low, self.high)
        return None if self.error is None else (self.y - self.error, self.y + self.error)

    @property
    def heights(self) -> tuple[float, ...]:
        """Every y that must be inside the picture."""
        return (self.y, *(self.span or ()))


@dataclass(frozen=True)
class Series:
    """Points of one method; those of a bound are no candidates for the front.

    Attributes:
        index: gives colour and marker, the same in every picture of a report.
    """

    index: int
    name: str
    points: tuple[Point, ...]
    bound: bool = False


@dataclass(frozen=True)
class _Box:
    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: _Box) -> bool:
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )


def scatter(
    title: str,
    x: Axis,
    y: Axis,
    series: Sequence[Series],
    *,
    best: Literal["low", "high"],
    level: float | None = None,
    height: float = 330,
) -> str:
    """SVG text. Points that no other point beats in both directions are filled, others hollow.

    Args:
        best: which y is good; a large x is always good.
        level: y of a dashed line across: the dense model, or a budget.
    """
    found = plot(title, x, y, height=height)
    if level is not None:
        ends = f"M{found.x.start:.1f} {found.y(level):.1f}H{found.x.end:.1f}"
        element(found.root, "path", d=ends, class_="level")
    sign = 1 if best == "low" else -1
    front = _front(series, sign)
    taken = [box for one in series for point in one.points for box in _boxes(found, point)]
    for one in series:
        group = element(found.root, "g", class_=f"series {series_class(one.index)}")
        _draw_line(group, found, one)
        for point in one.points:
            _draw_point(group, found, one.index, point, hollow=one.bound or point not in front)
    labels = element(found.root, "g", class_="labels", aria_hidden="true")
    for one in series:
        for point in one.points:
            _label(labels, found, point, taken)
    return found.markup


def scatter_legend(series: Sequence[Series]) -> tuple[LegendEntry, ...]:
    """One entry for each series."""
    return tuple(
        LegendEntry(
            marker_sample(one.index, hollow=one.bound, line="line dashed" if one.bound else "line"),
            f"{one.name} (bound)" if one.bound else one.name,
        )
        for one in series
    )


def _front(series: Sequence[Series], sign: int) -> list[Point]:
    points = [point for one in series if not one.bound for point in one.points]
    return [p for p in points if not any(_beats(q, p, sign) for q in points)]


def _beats(one: Point, other: Point, sign: int) -> bool:
    """Whether `one` is as good both ways, and better in one."""
    gains = (one.x - other.x, sign * (other.y - one.y))
    return min(gains) >= 0 and max(gains) > 0


def _draw_line(group: Element, found: Plot, series: Series) -> None:
    ordered = sorted(series.points, key=lambda point: point.x)
    path = "L".join(f"{found.x(p.x):.1f} {found.y(p.y):.1f}" for p in ordered)
    if len(ordered) > 1:
        element(group, "path", d=f"M{path}", class_="line dashed" if series.bound else "line")


def _draw_point(group: Element, found: Plot, index: int, point: Point, *, hollow: bool) -> None:
    x, y = found.x(point.x), found.y(point.y)
    one = element(group, "g", data_x=point.x, data_y=point.y)
    element(one, "title", point.title)
    for name in ("low", "high", "error"):
        number = getattr(point, name)
        if number is not None:
            one.set(f"data-{name}", repr(number))
    if point.span is not None:
        low, high = (found.y(end) for end in point.span)
        caps = f"M{x - 3:.1f} {low:.1f}h6M{x - 3:.1f} {high:.1f}h6"
        element(one, "path", d=f"M{x:.1f} {low:.1f}V{high:.1f}{caps}", class_="interval")
    draw_marker(one, index, x, y, hollow=hollow)


def _label(labels: Element, found: Plot, point: Point, taken: list[_Box]) -> None:
    """Writes the first label that fits beside the point without touching what is there."""
    x, y = found.x(point.x), found.y(point.y)
    for label in point.labels:
        width = CHARACTER * len(label)
        for anchor, start, middle in (
            ("start", x + _LABEL_DISTANCE, y),
            ("end", x - _LABEL_DISTANCE, y),
            *(("middle", x, y + lines * LINE) for lines in (-1, 1, -2, 2)),
        ):
            left = start - width * _BEFORE[anchor]
            box = _Box(left, middle - LINE / 2, left + width + _GAP, middle + LINE / 2)
            inside = (
                found.x.start < box.left
                and box.right < WIDTH
                and found.y.end - 4 < box.top
                and box.bottom < found.y.start
            )
            if inside and not any(box.overlaps(other) for other in taken):
                element(labels, "text", label, x=start, y=middle + 4, text_anchor=anchor)
                taken.append(box)
                return


def _boxes(found: Plot, point: Point) -> list[_Box]:
    """Around marker and whisker."""
    x, y, size = found.x(point.x), found.y(point.y), _MARKER_BOX
    boxes = [_Box(x - size, y - size, x + size, y + size)]
    if point.span is not None:
        low, high = point.span
        boxes.append(_Box(x - 3, found.y(high), x + 3, found.y(low)))
    return boxes
