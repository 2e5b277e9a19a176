"""Reports: versioned JSON is canonical, Markdown is made from the same values."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sparseinfer import strict_json
from sparseinfer.errors import OutputError
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
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = strict_json.dumps(content, indent=2) + "\n"
        _replace(folder / f"{name}.json", text)
        _replace(folder / f"{name}.md", markdown)
    except OSError as error:
        raise OutputError(f"cannot write the report to {folder}: {error.strerror}") from error


def check_report_folder(folder: Path) -> None:
    """Finds out, before hours of work, whether `write_report` could write there.

    Raises:
        OutputError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _replace(folder / ".probe", "")
        (folder / ".probe").unlink()
    except OSError as error:
        raise OutputError(f"cannot write the report to {folder}: {error.strerror}") from error


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, "utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
