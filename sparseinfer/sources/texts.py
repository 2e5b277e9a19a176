"""From what the user calls a text to documents in memory."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sparseinfer.errors import SourceError
from sparseinfer.sources.text_files import read_text_file
from sparseinfer.sources.text_sets import NAMED_TEXTS, hub_text


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
    if reference in NAMED_TEXTS:
        return Text(reference, NAMED_TEXTS[reference]())
    if reference.startswith("hf:"):
        return Text(reference, hub_text(reference[len("hf:") :]))
    path = os.path.expanduser(reference)  # noqa: PTH111 - no error without a home
    if reference.strip() and (os.path.lexists(path) or _looks_like_path(reference)):
        return Text(reference, read_text_file(Path(path)))
    raise SourceError(
        f"unknown text {reference!r}: give a UTF-8 text file, a .jsonl file, hf:ID of a hub data "
        f"set, or one of: {', '.join(NAMED_TEXTS)}"
    )


def _looks_like_path(reference: str) -> bool:
    return "/" in reference or reference.startswith("~") or bool(Path(reference).suffix)
