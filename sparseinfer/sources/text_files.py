"""Documents in a local file: UTF-8 text, or JSON lines with a field `text`."""

from __future__ import annotations

import json
from pathlib import Path

from sparseinfer.errors import SourceError


def read_text_file(path: Path) -> tuple[str, ...]:
    """The documents of a file: one per line of a `.jsonl` file, else the whole file as one.

    Raises:
        SourceError: missing, a folder, unreadable, binary, not UTF-8, malformed, or empty.
    """
    data = _read(path)
    documents = _json_lines(path, data) if path.suffix == ".jsonl" else (_decode(path, data),)
    if not any(document.strip() for document in documents):
        raise SourceError(f"{path} is empty: it has no text")
    return tuple(document for document in documents if document.strip())


def _read(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise SourceError(f"{path} is a folder: give a text file")
        if path.exists() and not path.is_file():
            raise SourceError(f"{path} is not a regular file")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise SourceError(f"text file {path} does not exist") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        reason = getattr(error, "strerror", None) or error
        raise SourceError(f"cannot read text file {str(path)!r}: {reason}") from error


def _decode(path: Path, data: bytes) -> str:
    if (offset := data.find(b"\0")) >= 0:
        raise SourceError(f"{path} is a binary file, not text: NUL byte at offset {offset}")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SourceError(
            f"{path} is not UTF-8 text: bad byte 0x{data[error.start]:02x} at offset {error.start}"
        ) from error
    return text.removeprefix("\ufeff")


def _json_lines(path: Path, data: bytes) -> tuple[str, ...]:
    documents = []
    # Not splitlines(): JSON strings may hold characters that it takes for line ends.
    for number, line in enumerate(_decode(path, data).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", None) or "nested too deeply"
            raise SourceError(f"{path}, line {number}: not valid JSON ({reason})") from error
        text = record.get("text") if isinstance(record, dict) else None
        if not isinstance(text, str):
            raise SourceError(f"{path}, line {number}: no field 'text' with a string")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise SourceError(f"{path}, line {number}: 'text' has half of a surrogate pair")
        documents.append(text)
    return tuple(documents)
