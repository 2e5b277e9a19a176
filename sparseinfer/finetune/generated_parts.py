"""Batches of text that a model wrote itself, each in a file that appears whole.

A killed run goes on with those that it has.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from sparseinfer import atomic
from sparseinfer.checkpoint import shards
from sparseinfer.differences import differences
from sparseinfer.errors import CheckpointError, ConfigError, OutputError, SourceError

logger = logging.getLogger("sparseinfer")

_SETTINGS = "settings.json"


class Parts:
    """A folder of batches, by number."""

    def __init__(self, path: Path, *, settings: dict[str, Any], rows: int, length: int) -> None:
        """
        Args:
            settings: all that batches depend on, of JSON types.
            rows, length: of a batch.

        Raises:
            ConfigError: the folder has batches of other settings.
            OutputError: it cannot be read or written.
        """
        self.path = path
        self._shape = (rows, length)
        file = path / _SETTINGS
        try:
            found = json.loads(file.read_text("utf-8")) if file.exists() else None
            if found is not None and not isinstance(found, dict):
                raise ValueError("no JSON object")
        except (OSError, ValueError) as error:
            raise OutputError(f"{file} cannot be read ({error}); delete {path}") from error
        if found is None:
            text = json.dumps(settings, indent=1) + "\n"
            atomic.write_files(path, {_SETTINGS: text}, what="generated text")
        elif found != settings:
            raise ConfigError(
                f"{path} holds generated text of a run with other settings "
                f"({differences(found, settings)[0]}); delete it to start anew, or choose another "
                "output (-o)"
            )

    def has(self, number: int) -> bool:
        return self._file(number).exists()

    def get(self, number: int) -> Tensor:
        """Ids int32 [rows, length].

        Raises:
            SourceError: a damaged file.
        """
        file = self._file(number)
        try:
            with shards.open_shard(file) as opened:
                ids = opened.get_tensor("ids").clone()
        except (CheckpointError, SafetensorError) as error:
            raise SourceError(f"{file} is damaged; delete it, and it is written again") from error
        if tuple(ids.shape) != self._shape or ids.dtype != torch.int32:
            raise SourceError(f"{file} is damaged; delete it, and it is written again")
        return ids

    def put(self, number: int, ids: Tensor) -> None:
        """Keeps a batch.

        Raises:
            OutputError: the disk is full, or the folder cannot be written.
        """
        file = self._file(number)
        partial = file.with_name(file.name + atomic.PARTIAL_SUFFIX)
        try:
            shards.save_shard({"ids": ids.to(torch.int32)}, partial, {})
            with partial.open("rb") as written:
                os.fsync(written.fileno())
            partial.replace(file)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise OutputError(
                f"cannot write {file}: {error.strerror or error}; finished batches are kept: the "
                "same command goes on with them"
            ) from error

    def remove(self) -> None:
        """Forgets all batches."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _file(self, number: int) -> Path:
        return self.path / f"batch-{number:06d}.safetensors"
