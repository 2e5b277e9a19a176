"""Reports: versioned JSON is canonical, Markdown is made from the same values."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from sparseinfer import strict_json
from sparseinfer.atomic import check_writable, write_files
from sparseinfer.eval.evaluate import Evaluation
from sparseinfer.eval.markdown import evaluation_markdown
from sparseinfer.version import __version__

REPORT_VERSION = 2

__all__ = [
    "REPORT_VERSION",
    "check_report_folder",
    "evaluation_json",
    "evaluation_markdown",
    "write_report",
]


def evaluation_json(evaluation: Evaluation) -> dict[str, Any]:
    """The evaluation as plain JSON values, with format and library versions."""
    import torch
    import transformers

    values = asdict(evaluation)
    values["record"] = evaluation.record.model_dump(mode="json") if evaluation.record else None
    return {
        "report_version": REPORT_VERSION,
        "versions": {
            "sparseinfer": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        **values,
    }


def write_report(folder: Path, name: str, content: dict[str, Any], markdown: str) -> None:
    """Writes `name`.json and `name`.md into a folder, each whole or not at all.

    Raises:
        OutputError: the folder cannot be written.
    """
    text = strict_json.dumps(content, indent=2) + "\n"
    files = {f"{name}.json": text, f"{name}.md": markdown}
    write_files(folder, files, what="the report")


def check_report_folder(folder: Path) -> None:
    """Finds out, before hours of work, whether `write_report` could write there.

    Raises:
        OutputError: the folder cannot be written.
    """
    check_writable(folder, what="the report")
