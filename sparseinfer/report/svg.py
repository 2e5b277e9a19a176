"""Drawings: SVG elements, scales, axes and markers.

Drawn in units of which a phone shows about one per CSS pixel, so that text stays readable there.
Colours and fonts are the page's style sheet's, by class, which is how drawings follow light and
dark. Elements that stand for a number of the report carry it exactly, in `data-` attributes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from xml.etree import ElementTree

from sparseinfer.report.cells import visible

WIDTH = 400
CHARACTER = 6.6
"""Mean width of a letter."""
LINE = 12
"""Height of a line of text."""
SERIES = 8
"""Colours that the style sheet has."""

_LEFT, _RIGHT, _TOP, _BELOW = 48, 18, 26, 40
_LOG_STEPS = ((1, 1.2, 1.5, 2, 3, 4, 5, 7), (1, 2, 5), (1,))
_MOST_TICKS = 7
_LOG_FROM = 2
"""A range of values is drawn on a logarithmic scale where its ends differ by this factor."""

Element = ElementTree.Element


def element(parent: Element, tag: str, content: str = "", **attributes: str | float) -> Element:
    """A child; `class_` and `data_x` stand for the attributes `class` and `data-x`."""
    found = ElementTree.SubElement(parent, tag, _attributes(attributes))
    if content:
        found.text = visible(content)
    return found


def drawing(title: str, height: float, *, width: float = WIDTH) -> Element:
    """An empty picture; `title` is what a screen reader says of it."""
    return Element(
        "svg",
        _attributes({"viewBox": f"0 0 {width:g} {height:g}", "role": "img"})
        | {"aria-label": visible(title)},
    )


def markup(root: Element) -> str:
    """SVG text to put into HTML."""
    return ElementTree.tostring(root, encoding="unicode")


@dataclass(frozen=True)
class Scale:
    """Maps values from `low` to `high` onto positions from `start` to `end`."""

    low: float
    high: float
    start: float = 0.0
    end: float = 1.0
    log: bool = False

    @classmethod
    def around(
        cls, values: Iterable[float], *, floor: float | None = None, log: bool = False
    ) -> Scale:
        """A scale that holds all values, with some room.

        Args:
            floor: begin here where values come near it, and none is below.
            log: logarithmic where values are positive and far apart.
        """
        found = list(values) or [0.0]
        low, high = min(found), max(found)
        if log and low > 0 and high / low >= _LOG_FROM:
            return cls(low / 1.1, high * 1.1, log=True)
        if floor is not None and 0 <= low - floor <= max(2 * (high - low), 0.2 * high):
            low = floor
        room = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
        return cls(low if low == floor else low - room, high + room)

    def onto(self, start: float, end: float) -> Scale:
        return Scale(self.low, self.high, start, end, self.log)

    def __call__(self, value: float) -> float:
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """A few round values inside."""
        return self._log_ticks() if self.log else self._linear_ticks()

    def _linear_ticks(self) -> list[float]:
        rough = (self.high - self.low) / 5
        magnitude = 10 ** math.floor(math.log10(rough))
        step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= rough * 0.999)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [float(f"{i * step:.10g}") for i in range(first, last + 1)]

    def _log_ticks(self) -> list[float]:
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        ticks: list[float] = []
        for steps in _LOG_STEPS:
            ticks = [
                value
                for decade in decades
                for step in steps
                if self.low <= (value := float(f"{step * 10.0**decade:.10g}")) <= self.high
            ]
            if len(ticks) <= _MOST_TICKS:
                return ticks
        return ticks[:: math.ceil(len(ticks) / _MOST_TICKS)]


@dataclass(frozen=True)
class Axis:
    """One direction of a plot."""

    name: str
    scale: Scale
    write: Callable[[float], str]
    """Text of a tick."""
    ticks: tuple[float, ...] | None = None
    """Other than the scale's own."""


@dataclass(frozen=True)
class Plot:
    """A picture with axes, ready to be drawn into."""

    root: Element
    x: Scale
    y: Scale

    @property
    def markup(self) -> str:
        return markup(self.root)


def plot(title: str, x: Axis, y: Axis, *, height: float = 260, grid: bool = True) -> Plot:
    """Axes with ticks; the name of y stands above it, where it needs no turning."""
    root = drawing(title, height)
    bottom, right = height - _BELOW, WIDTH - _RIGHT
    found = Plot(root, x.scale.onto(_LEFT, right), y.scale.onto(bottom, _TOP))
    axes = element(root, "g", class_="axes", aria_hidden="true")
    for value in found.y.ticks() if y.ticks is None else y.ticks:
        position = found.y(value)
        if grid:
            element(axes, "path", d=f"M{_LEFT} {position:.1f}H{right}", class_="grid")
        element(axes, "text", y.write(value), x=_LEFT - 6, y=position + 4, text_anchor="end")
    for value in found.x.ticks() if x.ticks is None else x.ticks:
        position = found.x(value)
        if grid:
            element(axes, "path", d=f"M{position:.1f} {_TOP}V{bottom}", class_="grid")
        element(axes, "text", x.write(value), x=position, y=bottom + 15, text_anchor="middle")
    element(axes, "path", d=f"M{_LEFT} {_TOP}V{bottom}H{right}", class_="axis")
    middle = (_LEFT + right) / 2
    element(axes, "text", x.name, x=middle, y=height - 6, text_anchor="middle", class_="name")
    element(axes, "text", y.name, x=4, y=14, class_="name")
    return found


def percent_tick(value: float) -> str:
    return f"{100 * value:.6g}%"


def number_tick(value: float) -> str:
    return f"{value:.6g}"


def count_tick(value: float) -> str:
    """12500000 as 12.5M."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.6g}{unit}"
    return f"{value:.6g}"


def series_class(index: int) -> str:
    """Colour class; after the last it begins again, with other markers."""
    return f"s{index % SERIES}"


def marker_path(index: int, x: float, y: float, size: float = 4.5) -> str:
    """Outline of a shape of its own for each series, around (x, y).

    There is one shape more than colours, so that pairs of both repeat late.
    """
    shape = _SHAPES[index % len(_SHAPES)]
    points = " ".join(f"{x + size * dx:.1f} {y + size * dy:.1f}" for dx, dy in shape)
    return f"M{points}Z"


def marker_sample(index: int, *, hollow: bool = False, line: str = "line") -> str:
    """SVG text of a legend's sample: a marker on a piece of its line."""
    root = drawing("", 14, width=28)
    root.set("aria-hidden", "true")
    group = element(root, "g", class_=f"series {series_class(index)}")
    if line:
        element(group, "path", d="M1 7H27", class_=line)
    element(group, "path", d=marker_path(index, 14, 7), class_=_mark(hollow))
    return markup(root)


def swatch(*css_classes: str) -> str:
    """SVG text of a legend's sample: filled boxes, one over the other."""
    root = drawing("", 14, width=28)
    root.set("aria-hidden", "true")
    for css_class in css_classes:
        element(root, "rect", x=1, y=1, width=26, height=12, class_=css_class)
    return markup(root)


def draw_marker(
    parent: Element, index: int, x: float, y: float, *, size: float = 4.5, hollow: bool = False
) -> Element:
    return element(parent, "path", d=marker_path(index, x, y, size), class_=_mark(hollow))


def _mark(hollow: bool) -> str:
    return "mark hollow" if hollow else "mark"


def _attributes(attributes: dict[str, str | float]) -> dict[str, str]:
    return {
        name.rstrip("_").replace("_", "-"): _written(name, value)
        for name, value in attributes.items()
    }


def _written(name: str, value: str | float) -> str:
    if isinstance(value, str):
        return value
    return repr(value) if name.startswith("data_") else f"{value:.4g}"


def _regular(corners: int, turn: float) -> tuple[tuple[float, float], ...]:
    angles = [turn + 2 * math.pi * i / corners for i in range(corners)]
    return tuple((math.sin(a), -math.cos(a)) for a in angles)


def _cross(turn: float) -> tuple[tuple[float, float], ...]:
    arm, width = 1.15, 0.4
    corners = [(-width, -arm), (width, -arm), (width, -width), (arm, -width), (arm, width),
               (width, width), (width, arm), (-width, arm), (-width, width), (-arm, width),
               (-arm, -width), (-width, -width)]  # fmt: skip
    return tuple(
        (x * math.cos(turn) - y * math.sin(turn), x * math.sin(turn) + y * math.cos(turn))
        for x, y in corners
    )


_SHAPES = (
    _regular(24, 0),
    tuple((0.9 * x, 0.9 * y) for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1))),
    tuple((1.25 * x, 1.25 * y) for x, y in _regular(3, 0)),
    tuple((1.2 * x, 1.2 * y) for x, y in _regular(4, 0)),
    tuple((1.25 * x, 1.25 * y) for x, y in _regular(3, math.pi)),
    _cross(math.pi / 4),
    _regular(5, 0),
    _cross(0),
    _regular(6, 0),
)
