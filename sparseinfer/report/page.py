"""HTML: one file that needs no network, no script and no other file."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from sparseinfer.report.cells import Value, parts, visible
from sparseinfer.report.document import Document, Gallery, Table
from sparseinfer.version import __version__

_FOLDER = Path(__file__).parent


def html(document: Document) -> str:
    """The document as a page. All texts are escaped; drawings are our own SVG."""
    return _template().render(
        document=document,
        style=(_FOLDER / "style.css").read_text("utf-8"),
        version=__version__,
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters["parts"] = parts
    environment.filters["numeric"] = _numeric_columns
    environment.tests["value"] = lambda part: isinstance(part, Value)
    environment.tests["table"] = lambda block: isinstance(block, Table)
    environment.tests["gallery"] = lambda block: isinstance(block, Gallery)
    return environment.get_template("page.html")


def _shown(content: object) -> object:
    """Of texts that are not markup yet: what cannot be seen becomes visible."""
    if isinstance(content, str) and not hasattr(content, "__html__"):
        return visible(content)
    return content


def _numeric_columns(table: Table) -> list[bool]:
    """Which columns hold numbers alone, or intervals of them: flush right, never broken."""
    return [
        all(row[i] == "" or isinstance(parts(row[i])[0], Value) for row in table.rows)
        for i in range(len(table.columns))
    ]
