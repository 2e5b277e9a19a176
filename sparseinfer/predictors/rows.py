"""Where the rows that a layer is trained on come from: a folder, or the model while it runs."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sparseinfer.checkpoint.layout import Progress
from sparseinfer.errors import PredictorError
from sparseinfer.predictors.capture_folder import CaptureRecord, read_capture, read_layer
from sparseinfer.predictors.observe import (
    LayerRows,
    hidden_states_file,
    memory_to_run,
    observe,
)
from sparseinfer.predictors.records import Provenance
from sparseinfer.predictors.sample import FEWEST_TOKENS
from sparseinfer.predictors.subject import Model, Subject

Take = Callable[[int, LayerRows], None]
"""Takes all rows of a layer; they hold until it returns."""


class RowSource(Protocol):
    """Gives the rows of layers, one layer at a time."""

    @property
    def provenance(self) -> Provenance:
        """The tokens that rows are of."""
        ...

    @property
    def memory(self) -> int:
        """Bytes that it holds beside the rows of a layer."""
        ...

    @property
    def temporary_file(self) -> int:
        """Bytes of disk that it needs meanwhile."""
        ...

    def each(self, layers: Collection[int], take: Take, progress: Progress) -> None:
        """Calls `take` with each of these layers, in ascending order."""
        ...


@dataclass(frozen=True)
class CapturedRows:
    """Rows in a folder of `capture`."""

    folder: Path
    record: CaptureRecord
    model: Model
    memory: int = 0
    temporary_file: int = 0

    @classmethod
    def open(cls, folder: Path, model: Model) -> CapturedRows:
        """
        Raises:
            PredictorError: it is no captured data, incomplete, damaged, of another model, or of too
                few tokens.
        """
        record = read_capture(folder)
        reason = record.made_for.differs_from(model.binding)
        if not reason and record.dtype != model.dtype:
            reason = f"its weights were rounded to {record.dtype}, not {model.dtype}"
        if reason:
            raise PredictorError(f"{folder} holds captured data of another model: {reason}")
        if record.missing:
            raise PredictorError(
                f"{folder} is incomplete: {len(record.missing)} of {record.made_for.layers} layers "
                "are missing; run the `sparseinfer capture` that began it again: it goes on where "
                "it stopped"
            )
        if record.captured_on.tokens < FEWEST_TOKENS:
            raise PredictorError(
                f"{folder} holds {record.captured_on.tokens} tokens; a predictor needs at least "
                f"{FEWEST_TOKENS}"
            )
        return cls(folder, record, model)

    @property
    def provenance(self) -> Provenance:
        return self.record.captured_on

    def each(self, layers: Collection[int], take: Take, progress: Progress) -> None:  # noqa: ARG002
        config = self.model.checkpoint.config
        for layer in sorted(layers):
            take(layer, read_layer(self.folder, self.record, layer, config))


@dataclass(frozen=True)
class WatchedRows:
    """Rows of a model that runs on text; nothing of them is written."""

    subject: Subject

    @property
    def provenance(self) -> Provenance:
        return self.subject.sample.provenance

    @property
    def memory(self) -> int:
        return memory_to_run(self.subject.checkpoint.config, self.provenance.tokens)

    @property
    def temporary_file(self) -> int:
        return hidden_states_file(self.subject.checkpoint.config, self.provenance.tokens)

    def each(self, layers: Collection[int], take: Take, progress: Progress) -> None:
        if not layers:
            return
        subject = self.subject
        collected = _Collected(LayerRows.empty(self.provenance.tokens, subject.checkpoint.config))

        def layer_done(layer: int) -> None:
            if layer in layers:
                take(layer, collected.take())

        observe(
            subject.checkpoint,
            subject.rules,
            subject.sample.windows,
            lambda layer: collected.add if layer in layers else None,
            layer_done,
            dtype=subject.dtype,
            progress=progress,
        )


class _Collected:
    """The rows of one layer in memory, filled again for each."""

    def __init__(self, room: LayerRows) -> None:
        self._room = room
        self._filled = 0

    def add(self, rows: LayerRows) -> None:
        end = self._filled + len(rows)
        self._room.x[self._filled : end] = rows.x
        self._room.masks[self._filled : end] = rows.masks
        self._filled = end

    def take(self) -> LayerRows:
        rows = self._room[: self._filled]
        self._filled = 0
        return rows
