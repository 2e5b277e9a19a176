"""Finished layers of a training run, in a folder beside its output: a killed run goes on there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sparseinfer.errors import PredictorError
from sparseinfer.kernels.lowrank import LowRank
from sparseinfer.layerwise import FinishedLayers
from sparseinfer.predictors.artifact import layer_from, layer_tensors
from sparseinfer.predictors.records import LayerRecord, PredictorRecord

_ENDING = ".training"


class Work:
    """Predictors of finished layers.

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
        self._header = header
        self._layers = FinishedLayers(
            out.with_name(out.name + _ENDING),
            settings | {"predictor": header.model_dump(mode="json")},
            header.model.layers,
            PredictorError,
            "choose another output (-o)",
        )

    def get(self, layer: int) -> tuple[LowRank | None, LayerRecord] | None:
        """A finished layer, or None. The first value is None for predictors without tensors.

        Raises:
            PredictorError: a damaged file.
        """
        found = self._layers.get(layer)
        if found is None:
            return None
        tensors, json = found
        try:
            record = LayerRecord.model_validate_json(json)
            lowrank = layer_from(tensors, self._header) if self._header.kind == "lowrank" else None
        except (ValidationError, KeyError, ValueError) as error:
            raise self._layers.damaged(layer) from error
        return lowrank, record

    def put(self, layer: int, lowrank: LowRank | None, record: LayerRecord) -> None:
        """Keeps a finished layer."""
        tensors = layer_tensors(lowrank) if lowrank is not None else {}
        self._layers.put(layer, tensors, record.model_dump_json())

    def remove(self) -> None:
        """Forgets all layers."""
        self._layers.remove()
