"""Speed against quality: which of our points lie beyond llama.cpp's frontier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparseinfer.bench.decode import Row

TIE = 0.002
"""Perplexities that differ by less, relatively, count as equal: the same weights differ by up to
half of that from one implementation's rounding to another's."""


@dataclass(frozen=True)
class Point:
    """One row on the plane.

    Attributes:
        speed: median tokens per second.
        perplexity: on the same tokens as every other point's.
    """

    name: str
    ours: bool
    speed: float
    perplexity: float

    def is_beaten_by(self, other: Point) -> bool:
        """Whether another is as fast and as good, at least."""
        return other.speed >= self.speed and other.perplexity <= self.perplexity * (1 + TIE)


def plane(rows: Sequence[Row]) -> tuple[Point, ...]:
    """Ours and llama.cpp's, of rows of all formats; empty where either has no measured quality."""
    points = tuple(
        Point(_name(row), row.side == "sparseinfer", row.speed.median, row.perplexity)
        for row in rows
        if row.side in ("sparseinfer", "llama.cpp") and row.perplexity is not None
    )
    return points if {point.ours for point in points} == {True, False} else ()


def findings(points: Sequence[Point]) -> tuple[str, ...]:
    """Sentences that say what the plane shows; none for no points.

    A point is beyond the frontier where no type of llama.cpp is as fast and as good. One that is
    faster than all of them and worse than all of them is so too, but buys its speed with quality
    that nobody measured against; it is named apart.
    """
    if not points:
        return ()
    ours = [one for one in points if one.ours]
    theirs = [one for one in points if not one.ours]
    worst = (1 + TIE) * max(one.perplexity for one in theirs)
    free = [one for one in ours if not any(one.is_beaten_by(other) for other in theirs)]
    beyond = [one for one in free if one.perplexity <= worst]
    worse = [one for one in free if one.perplexity > worst]
    behind = [one for one in ours if one not in free]
    found = [
        "beyond llama.cpp's frontier (none of "
        f"{', '.join(one.name for one in theirs)} is as fast and, within {TIE:.1%}, as good): "
        f"{_described(beyond)}"
    ]
    for other in theirs:
        better = [one for one in ours if other.is_beaten_by(one)]
        found.append(f"at least as fast and as good as {other.name}: {_described(better)}")
    found.append(f"faster than all of llama.cpp, at a worse perplexity: {_described(worse)}")
    found.append(f"behind the frontier: {_described(behind)}")
    return tuple(found)


def _described(points: Sequence[Point]) -> str:
    listed = (f"{one.name} ({one.speed:.1f} tokens/s, {one.perplexity:.2f})" for one in points)
    return ", ".join(listed) or "none"


def _name(row: Row) -> str:
    if row.side != "sparseinfer":
        return f"{row.side} {row.weights}"
    if row.target == 0:
        return f"{row.weights} dense"
    return f"{row.weights} {row.rule or ''} {row.target}".replace("  ", " ")
