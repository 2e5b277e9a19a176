"""safetensors files whose tensors begin at fixed alignments, written tensor by tensor.

The container allows no holes, so the header is filled up with blanks, which JSON ignores, and gaps
between tensors are tensors of their own, named `padding.N`. Any safetensors library reads the
result. Reading checks the header against the file's size, and against itself.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparseinfer.errors import CheckpointError
from sparseinfer.packed.layout import ALIGNMENT, PAGE, TORCH_DTYPES, Stored, round_up

PADDING = "padding."
METADATA = "__metadata__"
_LONGEST_HEADER = 100_000_000
"""The safetensors libraries' own limit."""


@dataclass(frozen=True)
class Placed:
    """A tensor and its place: bytes begin..end-1 of the data, which follows the header."""

    stored: Stored
    begin: int

    @property
    def end(self) -> int:
        return self.begin + self.stored.nbytes


def place(tensors: Iterable[Stored]) -> list[Placed]:
    """Tensors one after the other, with padding between them where it is needed."""
    placed: list[Placed] = []
    position = gaps = 0
    for stored in tensors:
        gap = round_up(position, ALIGNMENT) - position
        if gap:
            filler = Stored(f"{PADDING}{gaps}", "U8", (gap,), gap)
            placed.append(Placed(filler, position))
            position, gaps = position + gap, gaps + 1
        placed.append(Placed(stored, position))
        position += stored.nbytes
    return placed


def header_bytes(placed: Iterable[Placed], metadata: dict[str, str]) -> bytes:
    """The file up to its data, a multiple of `PAGE` bytes long.

    Its length depends on the lengths of the metadata alone, so that a value can be replaced by one
    of the same length later.
    """
    content: dict[str, Any] = {METADATA: metadata}
    for one in placed:
        content[one.stored.name] = {
            "dtype": one.stored.dtype,
            "shape": list(one.stored.shape),
            "data_offsets": [one.begin, one.end],
        }
    text = json.dumps(content, separators=(",", ":")).encode("ascii")
    length = round_up(8 + len(text), PAGE) - 8
    return length.to_bytes(8, "little") + text.ljust(length)


@dataclass(frozen=True)
class Container:
    """An opened file's header."""

    metadata: dict[str, str]
    tensors: dict[str, Placed]
    """Padding left out; `row_elements` is the last dimension."""
    data_begin: int
    data_size: int


def read_header(path: Path) -> Container:
    """Reads and checks the header of a file, and nothing of its data.

    Raises:
        CheckpointError: a file that is truncated, damaged or not of this kind.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or not 2 <= length <= _LONGEST_HEADER:
                raise _damaged(path, "no safetensors header")
            if 8 + length > size:
                raise _damaged(path, "the file ends within its header")
            text = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        content = json.loads(text)
        metadata = content.pop(METADATA, {})
        tensors = [_placed(name, entry) for name, entry in content.items()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, "its header is not valid") from error
    if not (
        isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    ):
        raise _damaged(path, "its metadata is not valid")
    position = 0
    for one in sorted(tensors, key=lambda one: (one.begin, one.end)):
        if one.begin != position:
            raise _damaged(path, f"tensor {one.stored.name} is not where the one before it ends")
        position = one.end
    if position != size - 8 - length:
        raise _damaged(
            path, f"it has {size - 8 - length:,} bytes of data, its header says {position:,}"
        )
    named = {one.stored.name: one for one in tensors if not one.stored.name.startswith(PADDING)}
    return Container(metadata, named, 8 + length, position)


def _placed(name: str, entry: dict[str, Any]) -> Placed:
    """Raises ValueError, KeyError or TypeError for what is no tensor's entry."""
    shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
    numbers = (*shape, begin, end)
    if not all(isinstance(number, int) and number >= 0 for number in numbers) or not shape:
        raise ValueError
    if entry["dtype"] not in TORCH_DTYPES:
        raise ValueError
    placed = Placed(Stored(name, entry["dtype"], shape, shape[-1]), begin)
    if placed.end != end:
        raise ValueError
    return placed


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path} is truncated or damaged ({what}); fetch or pack it again")
