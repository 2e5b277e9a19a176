"""Markdown: headings, paragraphs and tables; drawings are left to the HTML page."""

from __future__ import annotations

import re

from sparseinfer.report.cells import Cell, parts, visible
from sparseinfer.report.document import Document, Table

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~&!])")


def markdown(document: Document) -> str:
    """The document for terminals, repositories and issue trackers."""
    lines = [f"# {escaped(document.title)}", "", escaped(document.subtitle), ""]
    for warning in document.warnings:
        lines += [f"> Note. {escaped(warning)}", ""]
    lines += ["| | |", "|---|---|"]
    lines += [f"| {escaped(name)} | {_cell(content)} |" for name, content in document.facts]
    for section in document.sections:
        lines += ["", f"## {escaped(section.title)}"]
        for block in section.blocks:
            if isinstance(block, str):
                lines += ["", escaped(block)]
            elif isinstance(block, Table):
                lines += _table(block, under=section.title)
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, in one line."""
    return _SPECIAL.sub(r"\\\1", visible(text))


def _cell(content: Cell) -> str:
    return "".join(escaped(part if isinstance(part, str) else part.text) for part in parts(content))


def _table(table: Table, *, under: str) -> list[str]:
    lines = ["", f"### {escaped(table.title)}"] if table.title != under else []
    lines += ["", "| " + " | ".join(map(escaped, table.columns)) + " |"]
    lines.append("|" + "---|" * len(table.columns))
    lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in table.rows]
    if table.note:
        lines += ["", escaped(table.note)]
    return lines
