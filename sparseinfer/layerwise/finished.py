"""Finished layers of a run that goes layer by layer, in a folder: a killed run goes on there."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from sparseinfer import atomic
from sparseinfer.checkpoint import shards
from sparseinfer.differences import differences
from sparseinfer.errors import CheckpointError, OutputError, SparseInferError

logger = logging.getLogger("sparseinfer")

_SETTINGS = "settings.json"
_RECORD = "record"


class FinishedLayers:
    """A folder with a file for each finished layer, which appears whole or not at all.

    Attributes:
        path: the folder.
        done: finished layers found when it was opened.
    """

    def __init__(
        self,
        path: Path,
        settings: dict[str, Any],
        layers: int,
        error: type[SparseInferError],
        again: str,
    ) -> None:
        """
        Args:
            settings: all that layers depend on, of JSON types.
            layers: how many the model has.
            error: what is raised where the folder's content is of no use.
            again: what to do in place of going on with other settings, for the message.

        Raises:
            OutputError: the folder cannot be made, read or written.
            SparseInferError: of the given kind: it belongs to a run of other settings.
        """
        self.path = path
        self._error = error
        text = json.dumps(settings, indent=1)
        file = self.path / _SETTINGS
        try:
            found = file.read_text("utf-8") if file.exists() else None
        except (OSError, ValueError) as problem:
            raise OutputError(f"{file}: cannot be read: {problem}") from problem
        if found is None:
            atomic.write_files(self.path, {_SETTINGS: text + "\n"}, what="finished layers")
        elif found != text + "\n":
            change = _first_change(found, settings)
            raise error(
                f"{self.path} holds layers of a run with other settings{change}; delete it to "
                f"start anew, or {again}"
            )
        self.done = sum(self._file(layer).exists() for layer in range(layers))
        if self.done:
            logger.info("going on with %d finished layers of %s", self.done, self.path)

    def get(self, layer: int) -> tuple[dict[str, Tensor], str] | None:
        """Tensors and record (JSON) of a finished layer, or None.

        Raises:
            SparseInferError: a damaged file.
        """
        file = self._file(layer)
        if not file.exists():
            return None
        try:
            with shards.open_shard(file) as opened:
                record = (opened.metadata() or {})[_RECORD]
                return {name: opened.get_tensor(name).clone() for name in opened.keys()}, record  # noqa: SIM118
        except (CheckpointError, SafetensorError, KeyError) as problem:
            raise self.damaged(layer) from problem

    def damaged(self, layer: int) -> SparseInferError:
        """The error that says so, for who finds a layer's content wrong."""
        return self._error(f"{self._file(layer)} is damaged; delete it, and it is trained again")

    def put(self, layer: int, tensors: dict[str, Tensor], record: str) -> None:
        """Keeps a finished layer.

        Raises:
            OutputError: it cannot be written.
        """
        file = self._file(layer)
        partial = file.with_name(file.name + atomic.PARTIAL_SUFFIX)
        try:
            shards.save_shard(tensors, partial, {_RECORD: record})
            with partial.open("rb") as written:
                os.fsync(written.fileno())
            partial.replace(file)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise OutputError(
                f"cannot write {file}: {error.strerror or error}; finished layers are kept: the "
                "same command goes on with them"
            ) from error

    def remove(self) -> None:
        """Forgets all layers."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _file(self, layer: int) -> Path:
        return self.path / f"layer-{layer:03d}.safetensors"


def _first_change(found: str, wanted: dict[str, Any]) -> str:
    """ " (recall 0.9, not 0.98)": the first difference, where it can be told."""
    try:
        return f" ({differences(json.loads(found), wanted)[0]})"
    except (ValueError, AttributeError, IndexError):
        return ""
