"""A text as token ids on disk, made once: what training reads from.

    tokens.bin    the ids, one after the other: little-endian uint16, or uint32 for vocabularies
                  above 65,536
    store.json    how many, of which text, by which tokenizer, and the SHA-256 of tokens.bin

Documents follow each other as `<prefix> text <end of text>`, the prefix being what the tokenizer
puts before any text (a beginning-of-text token, or nothing). The folder appears whole or not at
all. Knows no windows and no epochs (`packing` does).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from sparseinfer.atomic import atomic_folder
from sparseinfer.checkpoint.layout import Progress, no_progress
from sparseinfer.differences import differences
from sparseinfer.errors import ConfigError, SourceError
from sparseinfer.sources.cache import sha256_of
from sparseinfer.tokenizer import Tokenizer

logger = logging.getLogger("sparseinfer")

STORE_VERSION = 1
IDS = "tokens.bin"
JSON = "store.json"

_TYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
_REPORT_EVERY = 1 << 14
"""Tokens between two calls of progress."""


class TokenSource(Protocol):
    """A stream of token ids that can be read anywhere."""

    def __len__(self) -> int:
        """Tokens."""
        ...

    def read(self, begin: int, count: int) -> Tensor:
        """Ids int64 [count] from position `begin` on, all of them within the stream."""
        ...


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Origin(_Record):
    """What a store is made of; where it is the same, a finished store is used again."""

    tokens_asked: int | None = Field(default=None, gt=0)
    """Tokens after which the text is cut; None: all of it."""
    vocab_size: int = Field(gt=0)
    """Of the model."""
    end_of_text: int | None
    """Id after each document."""
    tokenizer_sha256: str
    source: dict[str, Any]
    """Where the text comes from, as JSON."""

    def differences(self, other: Origin) -> list[str]:
        """For a message; that of texts first."""
        mine, its = (one.model_dump(mode="json") for one in (self, other))
        return differences(mine.pop("source") | mine, its.pop("source") | its)


class StoreRecord(_Record):
    """`store.json`."""

    format_version: Literal[1] = STORE_VERSION
    tokens: int = Field(gt=0)
    documents: int = Field(gt=0)
    """The last may be cut. Of text that a model wrote: rows, of which each may hold several."""
    dtype: Literal["uint16", "uint32"]
    sha256: str
    """Of tokens.bin."""
    origin: Origin


@dataclass(frozen=True, eq=False)
class TokenStore:
    """An opened store; its ids are mapped, not read."""

    path: Path
    record: StoreRecord
    _ids: np.ndarray[Any, Any] = field(repr=False)

    @classmethod
    def open(cls, folder: Path) -> TokenStore:
        """Reads and checks `store.json`, and the size of the ids.

        Raises:
            SourceError: missing, damaged or of another version.
        """
        record = _read_record(folder)
        file = folder / IDS
        dtype = _TYPES[record.dtype]
        try:
            size = file.stat().st_size
            if size != record.tokens * dtype.itemsize:
                raise SourceError(
                    f"{file} is damaged: it has {size:,} bytes, not "
                    f"{record.tokens * dtype.itemsize:,}; delete {folder}, and it is made again"
                )
            ids = np.memmap(file, dtype=dtype, mode="r")
        except OSError as error:
            raise SourceError(f"cannot read {file}: {error.strerror or error}") from error
        return cls(folder, record, ids)

    def __len__(self) -> int:
        return self.record.tokens

    def read(self, begin: int, count: int) -> Tensor:
        """Ids int64 [count] from position `begin` on."""
        if begin < 0 or count < 0 or begin + count > len(self):
            raise IndexError(f"tokens {begin} to {begin + count} of {len(self)}")
        return torch.from_numpy(self._ids[begin : begin + count].astype(np.int64))

    def verify(self) -> None:
        """Reads all ids and compares their hash.

        Raises:
            SourceError: other bytes than were written.
        """
        if sha256_of(self.path / IDS) != self.record.sha256:
            raise SourceError(
                f"{self.path / IDS} is damaged: its SHA-256 is not that of {JSON}; delete "
                f"{self.path}, and it is made again"
            )


class JoinedTokens:
    """Several streams as one, in their order."""

    def __init__(self, parts: Sequence[TokenSource]) -> None:
        self._parts = tuple(parts)

    @cached_property
    def _begins(self) -> np.ndarray[Any, Any]:
        """Where each part begins, and where the last one ends: int64 [parts + 1]."""
        return np.cumsum([0, *(len(part) for part in self._parts)])

    def __len__(self) -> int:
        return int(self._begins[-1])

    def read(self, begin: int, count: int) -> Tensor:
        """Ids int64 [count] from position `begin` on."""
        if begin < 0 or count < 0 or begin + count > len(self):
            raise IndexError(f"tokens {begin} to {begin + count} of {len(self)}")
        pieces = [torch.empty(0, dtype=torch.int64)]
        end = begin + count
        for part, first in zip(self._parts, self._begins.tolist(), strict=False):
            start, stop = max(begin - first, 0), min(end - first, len(part))
            if start < stop:
                pieces.append(part.read(start, stop - start))
        return torch.cat(pieces)


def build_store(
    folder: Path,
    documents: Iterable[str],
    tokenizer: Tokenizer,
    *,
    vocab_size: int,
    end_of_text: int | None,
    tokens: int | None,
    source: dict[str, Any],
    least: int = 1,
    progress: Progress = no_progress,
) -> TokenStore:
    """Tokenises documents into a store, or opens the one that the same was asked of before.

    Memory is that of the longest document. A killed build leaves nothing and starts anew.

    Args:
        vocab_size: of the model.
        end_of_text: id that ends a document; None: an empty line does.
        tokens: stop here, also within a document; None: at the last document.
        source: where the text comes from, for the record and to know it again (JSON types).
        least: tokens below which there is no use in going on.
        progress: called with ("tokenizing", tokens so far, tokens asked for).

    Raises:
        SourceError: a text with fewer tokens than `least`, a tokenizer of another model, or a store
            that is damaged; and what reading the documents raises.
        ConfigError: the folder has a store of something else, or `tokens` is below `least`.
        OutputError: the folder cannot be written, or the disk is full.
    """
    if tokens is not None and tokens < least:
        raise ConfigError(f"{tokens:,} tokens are too few: one batch of them has {least:,}")
    origin = Origin(
        tokens_asked=tokens,
        vocab_size=vocab_size,
        end_of_text=end_of_text,
        tokenizer_sha256=tokenizer.sha256,
        source=source,
    )
    found = finished_store(folder, origin)
    if found is not None:
        return found
    return write_store(
        folder,
        _tokenised(documents, tokenizer, end_of_text),
        origin,
        least=least,
        what="tokenizing",
        progress=progress,
    )


def finished_store(folder: Path, origin: Origin) -> TokenStore | None:
    """The store that was made of this, if there is one.

    Raises:
        ConfigError: the folder has a store of something else.
        SourceError: it has a damaged one.
    """
    if not (folder / JSON).exists():
        return None
    found = TokenStore.open(folder)
    if different := found.record.origin.differences(origin):
        raise ConfigError(
            f"{folder} holds text of another run ({different[0]}); delete it to have the text made "
            "anew, or choose another output (-o)"
        )
    found.verify()
    logger.info("using the %s tokens of %s", f"{len(found):,}", folder)
    return found


def write_store(
    folder: Path,
    documents: Iterable[Sequence[int] | np.ndarray[Any, Any]],
    origin: Origin,
    *,
    least: int = 1,
    what: str,
    progress: Progress = no_progress,
) -> TokenStore:
    """Writes token ids, document by document, until there are as many as the origin asks for.

    Args:
        what: is going on, for progress.

    Raises:
        SourceError: fewer ids than `least`, or one outside of the vocabulary.
        OutputError: as `atomic_folder`.
    """
    name = "uint16" if origin.vocab_size <= 1 << 16 else "uint32"
    dtype = _TYPES[name]
    digest = hashlib.sha256()
    count = written = reported = 0
    with atomic_folder(folder) as partial:
        with (partial / IDS).open("wb") as file:
            for document in documents:
                ids = np.asarray(document, dtype=np.int64)
                if origin.tokens_asked is not None:
                    ids = ids[: origin.tokens_asked - count]
                _check_ids(ids, origin.vocab_size)
                data = ids.astype(dtype).tobytes()
                file.write(data)
                digest.update(data)
                count += len(ids)
                written += 1
                if count - reported >= _REPORT_EVERY:
                    reported = count
                    progress(what, count, origin.tokens_asked or count)
                if count == origin.tokens_asked:
                    break
        if count < max(least, 1):
            raise SourceError(
                f"the text has {count:,} tokens, and one batch needs {least:,}: give more text, or "
                "a smaller --batch or --context"
            )
        record = StoreRecord(
            tokens=count, documents=written, dtype=name, sha256=digest.hexdigest(), origin=origin
        )
        (partial / JSON).write_text(record.model_dump_json(indent=1) + "\n", "utf-8")
    progress(what, count, origin.tokens_asked or count)
    return TokenStore.open(folder)


def _tokenised(
    documents: Iterable[str], tokenizer: Tokenizer, end_of_text: int | None
) -> Iterator[list[int]]:
    prefix = tokenizer.special_prefix
    end = tokenizer.encode_plain("\n\n") if end_of_text is None else [end_of_text]
    for document in documents:
        yield [*prefix, *tokenizer.encode_plain(document), *end]


def _check_ids(ids: np.ndarray[Any, Any], vocab_size: int) -> None:
    if len(ids) and int(ids.max()) >= vocab_size:
        raise SourceError(
            f"the tokenizer gives id {int(ids.max())} but the model's vocabulary has {vocab_size}: "
            "they do not belong together"
        )


def _read_record(folder: Path) -> StoreRecord:
    file = folder / JSON
    try:
        text = file.read_text("utf-8")
        content = json.loads(text)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SourceError(f"{folder}: no {JSON}; is it a folder of tokenised text?") from error
    except OSError as error:
        raise SourceError(f"cannot read {file}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise SourceError(
            f"{file} is damaged: not valid JSON; delete {folder}, and it is made again"
        ) from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != STORE_VERSION:
        raise SourceError(
            f"{file}: text format version {version!r} is not known to this sparseinfer (it reads "
            f"version {STORE_VERSION}); delete {folder}, and it is made again"
        )
    try:
        return StoreRecord.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise SourceError(
            f"{file} is damaged: {where}: {first['msg']}; delete {folder}, and it is made again"
        ) from error
