"""Finished layers of a training run, in a folder beside its output: a killed run goes on there."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError

from sparseinfer import atomic
from sparseinfer.checkpoint import shards
from sparseinfer.errors import CheckpointError, OutputError, PredictorError
from sparseinfer.kernels.lowrank import LowRank
from sparseinfer.predictors.artifact import layer_from, layer_tensors
from sparseinfer.predictors.records import LayerRecord, PredictorRecord

logger = logging.getLogger("sparseinfer")

_SETTINGS = "settings.json"
_RECORD = "record"
_ENDING = ".training"


class Work:
    """A folder of finished layers, each in a file of its own that appears whole.

    Raises:
        OutputError: the folder cannot be made, read or written.
        PredictorError: it belongs to a run of other settings.
    """

    def __init__(self, out: Path, header: PredictorRecord, settings: dict[str, Any]) -> None:
        """
        Args:
            out: where the predictor will be written.
            header: what is known of the predictor before any layer is.
            settings: all else that layers depend on, of JSON types.
        """
        self.path = out.with_name(out.name + _ENDING)
        self._header = header
        text = json.dumps(settings | {"predictor": header.model_dump(mode="json")}, indent=1)
        file = self.path / _SETTINGS
        try:
            found = file.read_text("utf-8") if file.exists() else None
        except (OSError, ValueError) as error:
            raise OutputError(f"{file}: cannot be read: {error}") from error
        if found is None:
            atomic.write_files(self.path, {_SETTINGS: text + "\n"}, what="finished layers")
        elif found != text + "\n":
            raise PredictorError(
                f"{self.path} holds layers of a run with other settings{_first_change(found, text)}"
                "; delete it to start anew, or choose another output (-o)"
            )
        done = sum(self._file(layer).exists() for layer in range(header.model.layers))
        if done:
            logger.info("going on with %d finished layers of %s", done, self.path)

    def get(self, layer: int) -> tuple[LowRank | None, LayerRecord] | None:
        """A finished layer, or None. The first value is None for predictors without tensors.

        Raises:
            PredictorError: a damaged file.
        """
        file = self._file(layer)
        if not file.exists():
            return None
        try:
            with shards.open_shard(file) as opened:
                record = LayerRecord.model_validate_json((opened.metadata() or {})[_RECORD])
                tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
            lowrank = layer_from(tensors, self._header) if self._header.kind == "lowrank" else None
        except (CheckpointError, SafetensorError, ValidationError, KeyError, ValueError) as error:
            raise PredictorError(
                f"{file} is damaged; delete it, and it is trained again"
            ) from error
        return lowrank, record

    def put(self, layer: int, lowrank: LowRank | None, record: LayerRecord) -> None:
        """Keeps a finished layer."""
        file = self._file(layer)
        partial = file.with_name(file.name + atomic.PARTIAL_SUFFIX)
        tensors = layer_tensors(lowrank) if lowrank is not None else {}
        try:
            shards.save_shard(tensors, partial, {_RECORD: record.model_dump_json()})
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


def _first_change(found: str, wanted: str) -> str:
    """ " (recall 0.9, not 0.98)": the first difference, where it can be told."""
    try:
        before, after = (_flat(json.loads(text)) for text in (found, wanted))
    except (ValueError, AttributeError):
        return ""
    for name, value in after.items():
        if name in before and before[name] != value:
            return f" ({name.rpartition('.')[2]} {before[name]}, not {value})"
    return ""


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in content.items():
        inner = (
            _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        )
        flat |= inner
    return flat
