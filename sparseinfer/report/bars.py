"""Stacked bars: how a whole is made up of parts, for several wholes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparseinfer.report.cells import Value
from sparseinfer.report.document import LegendEntry
from sparseinfer.report.svg import (
    WIDTH,
    Element,
    Scale,
    drawing,
    element,
    markup,
    number_tick,
    series_class,
    swatch,
)

_BAR, _NAME, _GAP = 18, 15, 11
_TOP, _BELOW, _SIDE = 8, 40, 10


@dataclass(frozen=True)
class Bar:
    """One whole.

    Attributes:
        total: written beside its name.
        parts: one value for each part, none below 0.
    """

    name: str
    total: Value
    parts: tuple[Value, ...]


def stacked_bars(
    title: str, unit: str, scale: float, parts: Sequence[str], bars: Sequence[Bar]
) -> str:
    """SVG text: one bar under the other, each under its name, all on one axis from 0.

    Args:
        unit: name of the axis.
        scale: what one of that unit is.
        parts: names, in the order of each bar's values.
    """
    step = _NAME + _BAR + _GAP
    bottom = _TOP + step * len(bars)
    root = drawing(title, bottom + _BELOW)
    right = WIDTH - _SIDE
    wholes = [sum(part.number or 0.0 for part in bar.parts) / scale for bar in bars]
    x = Scale(0.0, max(wholes) or 1.0, _SIDE, right)
    axes = element(root, "g", class_="axes", aria_hidden="true")
    for tick in x.ticks():
        element(axes, "path", d=f"M{x(tick):.1f} {_TOP}V{bottom}", class_="grid")
        element(axes, "text", number_tick(tick), x=x(tick), y=bottom + 15, text_anchor="middle")
    middle = WIDTH / 2
    element(axes, "text", unit, x=middle, y=bottom + 34, text_anchor="middle", class_="name")
    for index, bar in enumerate(bars):
        top = _TOP + step * index
        label = element(root, "g", class_="labels")
        element(label, "text", f"{bar.name}: {bar.total.text}", x=_SIDE, y=top + _NAME - 4)
        _draw(root, x, scale, parts, bar, top + _NAME)
    return markup(root)


def bar_legend(parts: Sequence[str]) -> tuple[LegendEntry, ...]:
    """One entry for each part."""
    return tuple(
        LegendEntry(swatch(f"part {series_class(index)}"), part) for index, part in enumerate(parts)
    )


def _draw(
    root: Element, x: Scale, scale: float, parts: Sequence[str], bar: Bar, top: float
) -> None:
    begin = 0.0
    for index, (name, value) in enumerate(zip(parts, bar.parts, strict=True)):
        size = (value.number or 0.0) / scale
        if size == 0:
            continue
        one = element(root, "g", data_value=value.number or 0.0)
        element(one, "title", f"{bar.name}, {name}: {value.text}")
        element(
            one,
            "rect",
            x=x(begin),
            y=top,
            width=x(begin + size) - x(begin),
            height=_BAR,
            class_=f"part {series_class(index)}",
        )
        begin += size
