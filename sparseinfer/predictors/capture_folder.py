"""Captured FFN inputs and masks on disk: one folder, shards of rows per layer, and `capture.json`.

    layer-NNN-PPP.safetensors    x [rows, H] bf16; masks [rows, ceil(I / 8)] uint8

`capture.json` lists the shards of finished layers only; it is replaced after each of them. A
folder whose layers are not all in it can be completed, and is not trained on.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError

from sparseinfer import atomic
from sparseinfer.checkpoint import shards
from sparseinfer.config import DTypeName, ModelConfig
from sparseinfer.errors import CheckpointError, OutputError, PredictorError
from sparseinfer.predictors.binding import Binding
from sparseinfer.predictors.observe import LayerRows, bytes_per_token, mask_bytes
from sparseinfer.predictors.records import Provenance

CAPTURE_VERSION = 1
JSON = "capture.json"
SHARD_BYTES = 1 << 27
"""Of data in a shard, about: what is held in memory until it is written."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Shard(_Record):
    """A file of rows."""

    file: str = Field(pattern=r"^layer-[0-9]+-[0-9]+\.safetensors$")
    rows: int = Field(gt=0)


class CaptureRecord(_Record):
    """`capture.json`."""

    format_version: Literal[1] = CAPTURE_VERSION
    model: str
    """As it was given."""
    made_for: Binding
    dtype: DTypeName
    """To which weights were rounded."""
    captured_on: Provenance
    shards: dict[int, tuple[Shard, ...]] = Field(default_factory=dict)
    """Finished layer -> its files."""

    @property
    def missing(self) -> list[int]:
        """Layers that are not finished."""
        return [layer for layer in range(self.made_for.layers) if layer not in self.shards]

    def differs_from(self, other: CaptureRecord) -> str:
        """Why rows of this capture cannot go on as `other`; nothing where they can."""
        reason = self.made_for.differs_from(other.made_for)
        if reason:
            return reason
        for name in ("text", "text_sha256", "tokens", "context", "seed"):
            mine, its = getattr(self.captured_on, name), getattr(other.captured_on, name)
            if mine != its:
                return f"it was begun with {name} {mine}, not {its}"
        if self.dtype != other.dtype:
            return f"it was begun with weights in {self.dtype}, not {other.dtype}"
        return ""


def read_capture(folder: Path) -> CaptureRecord:
    """Reads and checks `capture.json`.

    Raises:
        PredictorError: it is missing, damaged or of another version.
    """
    file = folder / JSON
    try:
        text = file.read_text("utf-8")
        content = json.loads(text)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise PredictorError(f"{folder}: no {JSON}; is it a folder of captured data?") from error
    except OSError as error:
        raise PredictorError(f"{file}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise PredictorError(f"{file} is damaged: not valid JSON; capture again") from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != CAPTURE_VERSION:
        raise PredictorError(
            f"{file}: capture format version {version!r} is not known to this sparseinfer (it "
            f"reads version {CAPTURE_VERSION}); capture again"
        )
    try:
        return CaptureRecord.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise PredictorError(f"{file} is damaged: {where}: {first['msg']}") from error


def write_record(folder: Path, record: CaptureRecord) -> None:
    """Replaces `capture.json`, whole or not at all."""
    text = record.model_dump_json(indent=1) + "\n"
    atomic.write_files(folder, {JSON: text}, what="captured data")


class LayerWriter:
    """Writes the rows of one layer as they come, a shard at a time.

    Raises:
        OutputError: the disk is full, or the folder cannot be written.
    """

    def __init__(self, folder: Path, layer: int, config: ModelConfig, tokens: int) -> None:
        self._folder, self._layer = folder, layer
        room = min(tokens, max(1, SHARD_BYTES // bytes_per_token(config)))
        self._buffer = LayerRows.empty(room, config)
        self._filled = 0
        self._written: list[Shard] = []

    def add(self, rows: LayerRows) -> None:
        """Takes rows; they may be changed afterwards."""
        while len(rows):
            count = min(len(rows), len(self._buffer) - self._filled)
            end = self._filled + count
            self._buffer.x[self._filled : end] = rows.x[:count]
            self._buffer.masks[self._filled : end] = rows.masks[:count]
            self._filled = end
            rows = rows[count:]
            if self._filled == len(self._buffer):
                self._flush()

    def finish(self) -> tuple[Shard, ...]:
        """Writes what is left; the files of the layer."""
        if self._filled:
            self._flush()
        return tuple(self._written)

    def _flush(self) -> None:
        name = f"layer-{self._layer:03d}-{len(self._written):03d}.safetensors"
        rows = self._buffer[: self._filled]
        path = self._folder / name
        try:
            shards.save_shard({"x": rows.x, "masks": rows.masks}, path, {})
            with path.open("rb") as file:
                os.fsync(file.fileno())
        except OSError as error:
            path.unlink(missing_ok=True)
            raise OutputError(
                f"cannot write {path}: {error.strerror or error}; finished layers are kept: the "
                "same command goes on with them"
            ) from error
        self._written.append(Shard(file=name, rows=self._filled))
        self._filled = 0


def read_layer(folder: Path, record: CaptureRecord, layer: int, config: ModelConfig) -> LayerRows:
    """All rows of a finished layer, in memory.

    Raises:
        PredictorError: a missing, damaged or foreign file.
    """
    parts = record.shards[layer]
    if sum(part.rows for part in parts) != record.captured_on.tokens:
        raise PredictorError(f"{folder / JSON} is damaged: layer {layer} lacks rows; capture again")
    rows = LayerRows.empty(record.captured_on.tokens, config)
    begin = 0
    for part in parts:
        path = folder / part.file
        try:
            with shards.open_shard(path) as file:
                x, masks = (file.get_tensor(name) for name in ("x", "masks"))
        except (CheckpointError, SafetensorError) as error:
            raise PredictorError(f"{path} is missing or damaged; capture again") from error
        width = mask_bytes(config.intermediate_size)
        shapes = ((part.rows, config.hidden_size), (part.rows, width))
        types = (torch.bfloat16, torch.uint8)
        if (x.shape, masks.shape) != shapes or (x.dtype, masks.dtype) != types:
            raise PredictorError(f"{path} is damaged: its tensors are not those of {JSON}")
        if not bool(torch.isfinite(x).all()):
            raise PredictorError(f"{path} is damaged: it holds NaN or Inf")
        end = begin + part.rows
        rows.x[begin:end], rows.masks[begin:end] = x, masks
        begin = end
    return rows
