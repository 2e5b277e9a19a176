"""From what the user calls a text to documents, in memory or one at a time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

from sparseinfer.errors import ConfigError, SourceError
from sparseinfer.sources.text_files import text_file_documents
from sparseinfer.sources.text_sets import NAMED_TEXTS, hub_documents

LONGEST_PIECE = 1 << 16
"""Characters of a document that is cut from a longer text file."""


@dataclass(frozen=True)
class Text:
    """Documents in their order, under the name the user gave."""

    name: str
    documents: tuple[str, ...]

    @cached_property
    def joined(self) -> str:
        """All documents as one string, an empty line between two."""
        return "\n\n".join(self.documents)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of `joined` in UTF-8, to say which text a number was measured on."""
        return hashlib.sha256(self.joined.encode("utf-8")).hexdigest()


def load_text(reference: str) -> Text:
    """Reads the text that `reference` names.

    A name of `NAMED_TEXTS` (for a file that is called the same write ./NAME), "hf:" and a hub data
    set id, a `.jsonl` file with a field `text` per line, or any other UTF-8 file.

    Raises:
        SourceError: no such text, or it cannot be fetched, read or decoded, or it is empty.
    """
    return Text(reference, tuple(_documents(reference, streaming=False)))


def stream_text(reference: str) -> Iterator[str]:
    """The documents of the text that `reference` names (see `load_text`), one at a time: for texts
    that are larger than memory.

    Documents are those of `load_text`, but text files that are not JSON lines come in pieces of at
    most `LONGEST_PIECE` characters, cut at blank lines where they have some; the pieces together
    are the file. Hub data sets are read from the hub as they are needed.

    Raises:
        SourceError: as `load_text`: at once for a text that cannot be found or opened, and when it
            is come upon for what is wrong within.
    """
    return _documents(reference, streaming=True)


def stream_texts(references: Sequence[str]) -> Iterator[str]:
    """The documents of several texts, one text after the other; see `stream_text`.

    Raises:
        ConfigError: no text is named.
        SourceError: as `stream_text`; at once if any of the texts cannot be found or opened.
    """
    if not references:
        raise ConfigError("no text is named (--text)")
    return chain.from_iterable([stream_text(reference) for reference in references])


def _documents(reference: str, *, streaming: bool) -> Iterator[str]:
    if reference in NAMED_TEXTS:
        return iter(NAMED_TEXTS[reference]())
    if reference.startswith("hf:"):
        return hub_documents(reference[len("hf:") :], streaming=streaming)
    path = os.path.expanduser(reference)  # noqa: PTH111 - no error without a home
    if reference.strip() and (os.path.lexists(path) or _looks_like_path(reference)):
        return text_file_documents(Path(path), longest=LONGEST_PIECE if streaming else None)
    raise SourceError(
        f"unknown text {reference!r}: give a UTF-8 text file, a .jsonl file, hf:ID of a hub data "
        f"set, or one of: {', '.join(NAMED_TEXTS)}"
    )


def _looks_like_path(reference: str) -> bool:
    return "/" in reference or reference.startswith("~") or bool(Path(reference).suffix)
