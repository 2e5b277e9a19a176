"""A report as readers see it, before it is Markdown or HTML: sections of tables and figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sparseinfer.report.cells import Cell


@dataclass(frozen=True)
class Table:
    """Column names and rows of as many cells.

    Attributes:
        folded: HTML shows it on request; for the long tables behind a figure.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    folded: bool = False

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{self.title}: {len(row)} cells under {len(self.columns)} names")


@dataclass(frozen=True)
class LegendEntry:
    """A drawn sample (SVG text) and what it stands for."""

    sample: str
    name: str


@dataclass(frozen=True)
class Figure:
    """A drawing (SVG text), which Markdown leaves out: the table after it has the same values."""

    title: str
    svg: str
    legend: tuple[LegendEntry, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Gallery:
    """Figures side by side where there is room."""

    figures: tuple[Figure, ...]


def gallery(figures: Sequence[Figure]) -> tuple[Gallery, ...]:
    """Nothing where there is nothing to show."""
    return (Gallery(tuple(figures)),) if figures else ()


Block = str | Table | Gallery
"""A string is a paragraph."""


@dataclass(frozen=True)
class Section:
    """A heading and what is below it."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Document:
    """All of a report.

    Attributes:
        facts: the few values that matter most: name and cell.
    """

    title: str
    subtitle: str
    facts: tuple[tuple[str, Cell], ...]
    warnings: tuple[str, ...]
    sections: tuple[Section, ...] = field(default=())


def table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    *,
    note: str = "",
    folded: bool = False,
) -> Table:
    """A table without the columns that have a value in no row."""
    kept = [i for i in range(len(columns)) if i == 0 or any(not _is_empty(row[i]) for row in rows)]
    return Table(
        title,
        tuple(columns[i] for i in kept),
        tuple(tuple(row[i] for i in kept) for row in rows),
        note,
        folded,
    )


def _is_empty(cell: Cell) -> bool:
    return cell == "" or (not isinstance(cell, str | tuple) and cell.number is None)
