"""Documents in a local file: UTF-8 text, or JSON lines with a field `text`. Read piece by piece."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from sparseinfer.errors import SourceError

_PIECE = 1 << 20
"""Bytes that are read at a time."""
_CUT_AFTER = ("\n\n", "\n\r\n", "\n", " ")
"""Where a long text is cut, the best first: blank lines, line ends, spaces."""


def text_file_documents(path: Path, *, longest: int | None = None) -> Iterator[str]:
    """The documents of a file: one per line of a `.jsonl` file, else the whole file as one.

    Args:
        longest: characters above which a text that is not JSON lines is cut into several documents,
            at blank lines where it has some (so that memory is bounded); None: never.

    Raises:
        SourceError: missing, a folder, or unreadable (at once); binary, not UTF-8, malformed, or
            empty (when that is come upon).
    """
    _check(path)
    return _documents(path, longest)


def _documents(path: Path, longest: int | None) -> Iterator[str]:
    pieces = _decoded(path)
    if path.suffix == ".jsonl":
        documents = _json_lines(path, pieces)
    elif longest is None:
        documents = iter(["".join(pieces)])
    else:
        documents = _cut(pieces, longest)
    empty = True
    for document in documents:
        if document.strip():
            empty = False
            yield document
    if empty:
        raise SourceError(f"{path} is empty: it has no text")


def _check(path: Path) -> None:
    try:
        if path.is_dir():
            raise SourceError(f"{path} is a folder: give a text file")
        if path.exists() and not path.is_file():
            raise SourceError(f"{path} is not a regular file")
        with path.open("rb"):
            pass
    except FileNotFoundError as error:
        raise SourceError(f"text file {path} does not exist") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError | ValueError) -> SourceError:
    reason = getattr(error, "strerror", None) or error
    return SourceError(f"cannot read text file {str(path)!r}: {reason}")


def _pieces(path: Path) -> Iterator[bytes]:
    """The bytes of a file, and an empty piece at its end."""
    try:
        with path.open("rb") as stream:
            while piece := stream.read(_PIECE):
                yield piece
    except OSError as error:
        raise _unreadable(path, error) from error
    yield b""


def _decoded(path: Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    begun = False
    for piece in _pieces(path):
        if (found := piece.find(b"\0")) >= 0:
            raise SourceError(
                f"{path} is a binary file, not text: NUL byte at offset {offset + found}"
            )
        kept = len(decoder.getstate()[0])  # bytes of a character that the last piece cut in two
        try:
            text = decoder.decode(piece, final=not piece)
        except UnicodeDecodeError as error:
            where = offset - kept + error.start
            raise SourceError(
                f"{path} is not UTF-8 text: bad byte 0x{error.object[error.start]:02x} at offset "
                f"{where}"
            ) from error
        yield text if begun else text.removeprefix("\ufeff")
        begun = begun or bool(text)
        offset += len(piece)


def _cut(pieces: Iterable[str], longest: int) -> Iterator[str]:
    """The same text in documents of at most `longest` characters (2 or more)."""
    rest = ""
    for piece in pieces:
        rest += piece
        begin = 0
        while len(rest) - begin > longest:
            end = _cut_in(rest, begin, begin + longest)
            yield rest[begin:end]
            begin = end
        rest = rest[begin:]
    yield rest


def _cut_in(text: str, begin: int, end: int) -> int:
    """Where to cut between `begin` and `end`: late, so that documents do not become short."""
    for mark in _CUT_AFTER:
        found = text.rfind(mark, (begin + end) // 2, end)
        if found >= 0:
            return found + len(mark)
    return end


def _lines(pieces: Iterable[str]) -> Iterator[str]:
    """Lines as split("\\n") gives them.

    Not splitlines(): JSON strings may hold characters that it takes for line ends.
    """
    begun: list[str] = []
    for piece in pieces:
        *ended, rest = piece.split("\n")
        if ended:
            yield "".join([*begun, ended[0]])
            yield from ended[1:]
            begun = []
        begun.append(rest)
    yield "".join(begun)


def _json_lines(path: Path, pieces: Iterable[str]) -> Iterator[str]:
    for number, line in enumerate(_lines(pieces), start=1):
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
        yield text
