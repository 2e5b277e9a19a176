"""A measured figure against what was promised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["at most", "at least"]


@dataclass(frozen=True)
class Figure:
    """One figure; `measured` is None where it could not be measured, which misses the promise."""

    name: str
    measured: float | None
    bound: float | None
    holds: bool
    detail: str = ""
    kind: Kind = "at most"


def at_most(name: str, measured: float, bound: float, detail: str = "") -> Figure:
    return Figure(name, measured, bound, measured <= bound, detail)


def at_least(name: str, measured: float, bound: float, detail: str = "") -> Figure:
    return Figure(name, measured, bound, measured >= bound, detail, "at least")


def shown(name: str, measured: float, detail: str = "") -> Figure:
    """A figure that nothing was promised of."""
    return Figure(name, measured, None, True, detail, "at least")


def not_measured(name: str, bound: float | None, kind: Kind, why: str) -> Figure:
    return Figure(name, None, bound, False, why, kind)
