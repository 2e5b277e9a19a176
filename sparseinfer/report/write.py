"""Writes a report: JSON, and what is made from it."""

from __future__ import annotations

from pathlib import Path

from sparseinfer import strict_json
from sparseinfer.atomic import check_writable, write_files
from sparseinfer.report.comparison import ComparisonReport
from sparseinfer.report.comparison_document import comparison_document
from sparseinfer.report.document import Document
from sparseinfer.report.evaluation import EvaluationReport
from sparseinfer.report.evaluation_document import evaluation_document
from sparseinfer.report.finetuning import FinetuningReport
from sparseinfer.report.finetuning_document import finetuning_document
from sparseinfer.report.markdown import markdown
from sparseinfer.report.page import html
from sparseinfer.report.schema import Report

_WHAT = "the report"


def write(report: Report, folder: Path) -> None:
    """Writes report.json, report.md and report.html, each whole or not at all.

    Raises:
        OutputError: the folder cannot be written.
    """
    document = document_of(report)
    files = {
        "report.json": json_text(report),
        "report.md": markdown(document),
        "report.html": html(document),
    }
    write_files(folder, files, what=_WHAT)


def check_folder(folder: Path) -> None:
    """Finds out, before hours of work, whether `write` could write there.

    Raises:
        OutputError: the folder cannot be written.
    """
    check_writable(folder, what=_WHAT)


def json_text(report: Report) -> str:
    """The canonical form, of the schema docs/report.schema.json."""
    return strict_json.dumps(report.model_dump(mode="json"), indent=2) + "\n"


def document_of(report: Report) -> Document:
    """The report as sections, tables and drawings."""
    match report:
        case EvaluationReport():
            return evaluation_document(report)
        case ComparisonReport():
            return comparison_document(report)
        case FinetuningReport():
            return finetuning_document(report)
