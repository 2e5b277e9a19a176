"""Cells: numbers as readers see them, each beside the exact value of the JSON report."""

from __future__ import annotations

import math
import re
import unicodedata
from dataclasses import dataclass
from enum import Enum

ABSENT = "-"


class Style(Enum):
    """How a number is written."""

    PERCENT = "percent"
    """0.4137 -> 41.37%"""
    RATIO = "ratio"
    """Four decimals."""
    QUANTITY = "quantity"
    """Four significant digits."""
    SPEED = "speed"
    """One decimal."""
    BYTES = "bytes"
    """In kB, MB or GB, which are powers of 1000."""
    COUNT = "count"
    """All digits, in groups of three."""
    EXACT = "exact"
    """As the JSON report has it."""


@dataclass(frozen=True)
class Value:
    """A number of the report; None where there is none, or none that is finite."""

    number: float | None
    style: Style

    @property
    def text(self) -> str:
        if self.number is None:
            return ABSENT
        return _WRITERS[self.style](self.number)


Cell = str | Value | tuple[str | Value, ...]
"""A text, a number, or several of both in a row."""


def percent(number: float | None) -> Value:
    return Value(number, Style.PERCENT)


def ratio(number: float | None) -> Value:
    return Value(number, Style.RATIO)


def quantity(number: float | None) -> Value:
    return Value(number, Style.QUANTITY)


def count(number: int | None) -> Value:
    return Value(number, Style.COUNT)


def exact(number: float | None) -> Value:
    return Value(number, Style.EXACT)


def byte_count(number: int | None) -> Value:
    return Value(number, Style.BYTES)


def parts(cell: Cell) -> tuple[str | Value, ...]:
    """A cell's texts and numbers in order."""
    return cell if isinstance(cell, tuple) else (cell,)


def plain(cell: Cell) -> str:
    """A cell as one line of text."""
    return "".join(visible(part) if isinstance(part, str) else part.text for part in parts(cell))


def visible(text: str) -> str:
    """Names come from users: line breaks become spaces, and what no font shows, or what turns the
    direction of the text around it, becomes its escape sequence."""
    joined = re.sub(r"[\r\n\t\u2028\u2029]+", " ", text)
    return "".join(
        f"\\u{ord(char):04x}" if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co") else char
        for char in joined
    )


def _byte_text(number: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(number) >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number:g} bytes"


def _exact_text(number: float) -> str:
    whole = isinstance(number, float) and number.is_integer() and abs(number) < 1e15
    return str(int(number)) if whole else repr(number)


def _quantity_text(number: float) -> str:
    """Four significant digits, but no exponent where reading one is harder than the digits."""
    if number == 0 or not 1e-4 <= abs(number) < 1e6:
        return f"{number:.4g}"
    digits = max(0, 3 - math.floor(math.log10(abs(number))))
    return f"{number:.{digits}f}"


_WRITERS = {
    Style.PERCENT: lambda number: f"{100 * number:.2f}%",
    Style.RATIO: lambda number: f"{number:.4f}",
    Style.QUANTITY: _quantity_text,
    Style.SPEED: lambda number: f"{number:.1f}",
    Style.BYTES: _byte_text,
    Style.COUNT: lambda number: f"{number:,}",
    Style.EXACT: _exact_text,
}
