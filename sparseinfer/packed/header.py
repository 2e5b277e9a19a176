"""What a pack says about itself besides its tensors, as checked values."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from sparseinfer.config import ModelConfig, ParentRecord, SparsityRecord
from sparseinfer.errors import CheckpointError, ConfigError, UnsupportedError
from sparseinfer.formats import WeightFormats
from sparseinfer.packed.layout import PACKED_VERSION, layouts
from sparseinfer.packed.rope import RopeFrequencies

KIND, KIND_VALUE = "format", "sparseinfer-packed"
VERSION, CONTENT, DATA_HASH = "packed_version", "sparseinfer", "data_sha256"
"""Keys of the file's metadata; the version is a value of its own, read before all others."""


class Header(BaseModel):
    """The JSON text under the key `sparseinfer`. All that loading needs: no other file is read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    written_by: str
    """Version of sparseinfer."""
    formats: WeightFormats
    layouts: dict[str, str]
    """Kind of matrix -> name of its layout."""
    config: ModelConfig
    rope: RopeFrequencies
    stop_ids: tuple[int, ...]
    record: SparsityRecord | None
    source: ParentRecord
    """The checkpoint that was packed, and the hash of its FFN weights."""


def to_metadata(header: Header) -> dict[str, str]:
    """The file's metadata, the hash of its data still missing (64 zeros)."""
    return {
        KIND: KIND_VALUE,
        VERSION: str(PACKED_VERSION),
        CONTENT: header.model_dump_json(),
        DATA_HASH: "0" * 64,
    }


def from_metadata(metadata: dict[str, str], path: Path) -> Header:
    """Checks a file's metadata.

    Raises:
        CheckpointError: another kind of file, another version, or values that make no sense.
        UnsupportedError: a layout or format that this version does not know.
    """
    if metadata.get(KIND) != KIND_VALUE:
        raise CheckpointError(f"{path} is not a packed artifact of sparseinfer")
    version = metadata.get(VERSION)
    if version != str(PACKED_VERSION):
        raise CheckpointError(
            f"{path}: packed version {version!r} is not known to this sparseinfer (it reads "
            f"version {PACKED_VERSION}); pack the model again"
        )
    try:
        header = Header.model_validate_json(metadata.get(CONTENT, ""), strict=True)
    except (ValidationError, ConfigError) as error:
        raise CheckpointError(f"{path}: bad header: {_first(error)}") from error
    try:
        expected = layouts(header.record, header.formats.layers)
    except ConfigError as error:
        raise UnsupportedError(f"{path}: {error}") from error
    for kind, layout in header.layouts.items():
        if expected.get(kind) != layout:
            raise UnsupportedError(
                f"{path}: {kind} is stored as {layout!r}, which this version cannot run"
            )
    if set(header.layouts) != set(expected):
        raise CheckpointError(f"{path}: bad header: layouts name {sorted(header.layouts)}")
    _check_values(header, path)
    return header


def _check_values(header: Header, path: Path) -> None:
    config, record, rope = header.config, header.record, header.rope
    if record is not None and (record.phi, record.psi) != (config.phi, config.psi):
        raise CheckpointError(f"{path}: bad header: config and record name other activations")
    if record is not None and (record.top_k or 1) > config.intermediate_size:
        raise CheckpointError(f"{path}: bad header: mask {record.mask} keeps more neurons than are")
    if len(rope.inv_freq) != config.head_dim // 2:
        raise CheckpointError(f"{path}: bad header: rope does not fit head_dim {config.head_dim}")
    if not all(math.isfinite(value) for value in (*rope.inv_freq, rope.scale)):
        raise CheckpointError(f"{path}: bad header: rope has values that are not finite")


def _first(error: ValidationError | ConfigError) -> str:
    """One line on what is wrong first."""
    if isinstance(error, ConfigError):
        return str(error)
    first: Any = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" if where else str(first["msg"])
